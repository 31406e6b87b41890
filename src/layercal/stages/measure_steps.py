"""Divide each block's step of calibration and of knowledge between its attention and its MLP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from layercal import results
from layercal.metrics import halves, readings
from layercal.metrics.phase import Phase
from layercal.sources import questions
from layercal.stages import Output, log


def measure_steps(
    *,
    prompts: Path,
    options: Path,
    phase: Path,
    residuals: list[Path],
    folds: int = 5,
    seed: int = 0,
    steps: Output,
) -> None:
    """Write the steps; none where blocks have no stream between attention and MLP."""
    run = results.Run.load(prompts)
    layers, reached = run.by_prompt(options), Phase.from_json(run.read(phase))
    shards, order = run.shards(residuals)
    if "mid_logits" not in shards[0]:
        log.info("no stream between attention and MLP of its blocks is known")
        run.write(steps, halves.NOTHING)
        return
    asked = run.prompts.drop_duplicates("question_id")
    fold = np.array(questions.folds(asked["cluster"].tolist(), folds, seed))
    logits = torch.cat([shard["mid_logits"] for shard in shards])[order].numpy()
    read = (readings.primary(table, run.prompts) for table in (layers, _middles(layers, logits)))
    with threadpool_limits(1):  # many small fits, which threads only slow down
        run.write(steps, halves.table(halves.with_middles(*read), fold, reached.peak_layer))


def _middles(layers: pd.DataFrame, logits: np.ndarray) -> pd.DataFrame:
    """Logits (n, L, k) of the middle of each block, in the form of a lens table."""
    above = layers[layers["layer"] > 0].drop(columns=["option_mass", "entropy"])
    columns = readings.option_columns(above)
    lacking = np.isneginf(above[columns].to_numpy())
    middle = np.where(lacking, -np.inf, logits.reshape(-1, logits.shape[-1]))
    return above.assign(**dict(zip(columns, middle.T, strict=True)))
