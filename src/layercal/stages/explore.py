"""Render the interactive page of a study: every model on every question set."""

from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open

from layercal import explorer, runs, sources, stages

TABLES = ("prompts", "options", "metrics", "phase", "directions", "sweep")
RANDOM = "random-00"  # the one control shown beside the primary direction


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
    sources.write_atomically(args.out, page)
    size = len(page.encode())
    stages.log.info("%s: %.1f MB", args.out.name, size / 1e6)
    if size > explorer.LIMIT:
        stages.log.warning("it is slow to open: study fewer models or question sets at once")


def _pair(name: str, shards, prompts, options, metrics, phase, directions, sweep) -> dict:
    run = runs.Run.load(prompts)
    run.check(directions, *shards)
    table = run.read(sweep)
    every = list(table["direction"].unique())
    shown = [every[0], *(one for one in every if one == RANDOM)]
    with safe_open(directions, "np") as fitted:
        fold = fitted.get_tensor("fold")
    n_folds, variants = fold.max() + 1, sum(not one.startswith("random-") for one in every)
    # of the primary direction the fit without a question's own fold; a random one has no fits
    columns = [fold, np.full_like(fold, variants * n_folds)][: len(shown)]
    steered = {
        mode: np.stack([_read(run, shards, mode, column) for column in columns])
        for mode in table["mode"].unique()
    }
    return explorer.pair(
        *name.split("/"),
        run.prompts,
        run.read(options),
        run.read(metrics),
        run.read(phase),
        table[table["direction"].isin(shown)],
        steered,
    )


def _read(run: runs.Run, shards, mode: str, column: np.ndarray) -> np.ndarray:
    """Steered logits (layers, alphas, n, n_options), one column of the shards a question.

    Only the columns that are needed are read; :mod:`layercal.stages.steer` has their order.
    """
    first, end = column.min(), column.max() + 1
    picked, rows = [], []
    for path in shards:
        with safe_open(path, "np") as shard:
            picked.append(shard.get_slice(mode)[:, first:end])
            rows.append(shard.get_tensor("rows"))
    logits = np.concatenate(picked)[run.order(shards, rows)]
    return np.moveaxis(logits[np.arange(len(logits)), column - first], 0, -2)


if __name__ == "__main__":
    main()
