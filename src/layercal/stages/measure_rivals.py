"""Measure what a user could do instead of steering, on the same folds as the directions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from layercal import results
from layercal.metrics import readings, resampling, rivals
from layercal.sources import questions
from layercal.stages import Output


def measure_rivals(
    *,
    prompts: Path,
    options: Path,
    residuals: list[Path],
    n_bins: int = 10,
    draws: int = 1000,
    folds: int = 5,
    seed: int = 0,
    table: Output,
) -> None:
    """Write the scores of other readings of the same pass, prompt by prompt."""
    run = results.Run.load(prompts)
    cluster = pd.factorize(run.prompts["cluster"])[0]
    fold = np.array(questions.folds(run.prompts["cluster"].tolist(), folds, seed))
    held = results.Residuals.load(residuals, run)
    stream = (held[:, layer].float().numpy() for layer in range(held.shape[1]))
    shown = tqdm(stream, desc="layers", total=held.shape[1], disable=None)
    weights = resampling.cluster_weights(cluster, draws, seed)
    with threadpool_limits(1):  # many small fits, which threads only slow down
        logits = readings.prompt_logits(run.by_prompt(options), len(cluster)).swapaxes(0, 1)
        read = readings.Readings(logits, run.prompts["answer"].to_numpy(), {}, cluster)
        run.write(table, rivals.table(read, shown, fold, weights, n_bins, seed))
