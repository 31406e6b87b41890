"""Render the interactive page of a study: every model on every question set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from safetensors import safe_open

from layercal import files, results
from layercal.report import explorer
from layercal.stages import Output, log
from layercal.steering.tally import CONTROL


def render_explorer(
    *,
    pairs: list[str],
    prompts: list[Path],
    options: list[Path],
    metrics: list[Path],
    phase: list[Path],
    directions: list[Path],
    sweep: list[Path],
    logits: list[Path],
    texts: list[Path],
    page: Path,
    script: Path,
    html: Output,
) -> None:
    """Write the page."""
    shards = np.array_split(logits, len(pairs))
    tables = zip(prompts, options, metrics, phase, directions, sweep, strict=True)
    shown = [
        _pair(name, list(own), *paths)
        for name, own, paths in zip(pairs, shards, tables, strict=True)
    ]
    asked = {path.stem: explorer.ask(pd.read_parquet(path)) for path in texts}
    text = explorer.page(shown, asked, page.read_text(), script.read_text())
    files.write_atomically(html, text)
    size = len(text.encode())
    log.info("%s: %.1f MB", html.name, size / 1e6)
    if size > explorer.LIMIT:
        log.warning("it is slow to open: study fewer models or question sets at once")


def _pair(name: str, shards, prompts, options, metrics, phase, directions, sweep) -> dict:
    run = results.Run.load(prompts)
    run.check(directions, *shards)
    table = run.read(sweep)
    shown = [table["direction"].iloc[0], CONTROL]
    with safe_open(directions, "np") as fitted:
        fold = fitted.get_tensor("fold")
    # of the primary direction the fit without a question's own fold; the control, which has no
    # fits, comes last
    columns = [fold, np.full_like(fold, -1)]
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


def _read(run: results.Run, shards, mode: str, column: np.ndarray) -> np.ndarray:
    """Steered logits (layers, alphas, n, n_options), one column of the shards a question.

    Only the columns that are needed are read; :mod:`layercal.stages.steer_prompts` has their order.
    """
    picked, rows = [], []
    for path in shards:
        with safe_open(path, "np") as shard:
            held = shard.get_slice(mode)
            at = column % held.get_shape()[1]
            first = at.min()
            picked.append(held[:, first : at.max() + 1])
            rows.append(shard.get_tensor("rows"))
    logits = np.concatenate(picked)[run.order(shards, rows)]
    return np.moveaxis(logits[np.arange(len(logits)), at - first], 0, -2)
