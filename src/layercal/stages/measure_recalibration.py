"""Recalibrate the reading of every layer, and ask whether a phase is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from layercal import results
from layercal.metrics import readings, resampling
from layercal.metrics.phase import of_readings
from layercal.metrics.recalibration import TEMPERATURE, VECTOR, cross_tempered, table
from layercal.sources import questions
from layercal.stages import Output, log
from layercal.steering import baselines


def measure_recalibration(
    *,
    prompts: Path,
    options: Path,
    n_bins: int = 10,
    draws: int = 1000,
    tolerance: float = 0.02,
    folds: int = 5,
    seed: int = 0,
    recalibration: Output,
    phase: Output,
) -> None:
    """Write scores of the logit lens before and after, and the phase of the tempered readings."""
    run = results.Run.load(prompts)
    asked = run.prompts.drop_duplicates("question_id")
    read = readings.primary(run.by_prompt(options), run.prompts)
    fold = np.array(questions.folds(asked["cluster"].tolist(), folds, seed))
    weights = resampling.cluster_weights(read.cluster, draws, seed)
    with threadpool_limits(1):  # many small fits, which threads only slow down
        scaled = _scaled(read, fold)
        run.write(recalibration, table(read, scaled, fold, weights, n_bins, seed))
    tempered = readings.Readings(scaled[TEMPERATURE], read.answer, {}, read.cluster)
    left = of_readings(tempered, draws=draws, seed=seed, tolerance=tolerance, n_bins=n_bins)
    run.write(phase, left.to_json())
    log.info("With a temperature for each layer: %s", left.reason)


def _scaled(read: readings.Readings, fold: np.ndarray) -> dict[str, np.ndarray]:
    """Held-out logits of every layer by recalibration; (layers, n, k)."""
    vector = [
        baselines.cross_apply(baselines.vector_scaling, layer, read.answer, fold)
        for layer in read.logits
    ]
    tempered = cross_tempered(read.logits, read.answer, fold)
    return {TEMPERATURE: tempered, VECTOR: np.stack(vector)}
