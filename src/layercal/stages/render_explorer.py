"""Render the interactive page of a study: every model on every question set."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from safetensors import safe_open

from layercal import files, results
from layercal.report import explorer
from layercal.stages import Output, log
from layercal.steering import steered
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
    n_shards = len(logits) // len(pairs)
    shown = [
        _pair(
            name,
            shards=logits[place * n_shards : (place + 1) * n_shards],
            prompts=prompts[place],
            options=options[place],
            metrics=metrics[place],
            phase=phase[place],
            directions=directions[place],
            sweep=sweep[place],
        )
        for place, name in enumerate(pairs)
    ]
    asked = {path.stem: explorer.ask(pd.read_parquet(path)) for path in texts}
    text = explorer.page(shown, asked, page.read_text(), script.read_text())
    files.write_atomically(html, text)
    size = len(text.encode())
    log.info("%s: %.1f MB", html.name, size / 1e6)
    if size > explorer.LIMIT:
        log.warning("it is slow to open: study fewer models or question sets at once")


def _pair(
    name: str,
    *,
    shards: list[Path],
    prompts: Path,
    options: Path,
    metrics: Path,
    phase: Path,
    directions: Path,
    sweep: Path,
) -> dict:
    run = results.Run.load(prompts)
    run.check(directions, *shards)
    table = run.read(sweep)
    shown = [table["direction"].iloc[0], CONTROL]
    with safe_open(directions, "np") as fitted:
        fold = fitted.get_tensor("fold")
    by_mode = {mode: steered.shown(run, shards, mode, fold) for mode in table["mode"].unique()}
    model, questions = name.split("/")
    return explorer.pair(
        model,
        questions,
        run.prompts,
        run.read(options),
        run.read(metrics),
        run.read(phase),
        table[table["direction"].isin(shown)],
        by_mode,
    )
