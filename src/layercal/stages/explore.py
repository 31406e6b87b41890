"""Render the interactive page of a study: every model on every question set."""

from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open

from layercal import files, results, stages
from layercal.report import explorer
from layercal.steering import steered
from layercal.steering.tally import CONTROL

TABLES = ("prompts", "options", "metrics", "phase", "directions", "sweep")


def main() -> None:
    """Run the stage."""
    made = stages.parser("explore", __doc__)
    made.add_argument("--pairs", nargs="+", required=True, help="model/questions of each pair")
    for table in TABLES:
        made.add_argument(f"--{table}", type=Path, nargs="+", required=True, help="of each pair")
    made.add_argument("--logits", type=Path, nargs="+", required=True, help="steered, pair by pair")
    made.add_argument("--texts", type=Path, nargs="+", required=True, help="question tables")
    made.add_argument("--page", type=Path, required=True)
    made.add_argument("--script", type=Path, required=True)
    made.add_argument("--out", type=Path, required=True)
    stages.run(stage, made)


def stage(args) -> None:
    """Write the page."""
    shards = np.array_split(args.logits, len(args.pairs))
    tables = zip(*(getattr(args, name) for name in TABLES), strict=True)
    pairs = [
        _pair(name, list(own), *paths)
        for name, own, paths in zip(args.pairs, shards, tables, strict=True)
    ]
    texts = {path.stem: explorer.ask(pd.read_parquet(path)) for path in args.texts}
    page = explorer.page(pairs, texts, args.page.read_text(), args.script.read_text())
    files.write_atomically(args.out, page)
    size = len(page.encode())
    stages.log.info("%s: %.1f MB", args.out.name, size / 1e6)
    if size > explorer.LIMIT:
        stages.log.warning("it is slow to open: study fewer models or question sets at once")


def _pair(name: str, shards, prompts, options, metrics, phase, directions, sweep) -> dict:
    run = results.Run.load(prompts)
    run.check(directions, *shards)
    table = run.read(sweep)
    shown = [table["direction"].iloc[0], CONTROL]
    with safe_open(directions, "np") as fitted:
        fold = fitted.get_tensor("fold")
    by_mode = {mode: steered.shown(run, shards, mode, fold) for mode in table["mode"].unique()}
    return explorer.pair(
        *name.split("/"),
        run.prompts,
        run.read(options),
        run.read(metrics),
        run.read(phase),
        table[table["direction"].isin(shown)],
        by_mode,
    )


if __name__ == "__main__":
    main()
