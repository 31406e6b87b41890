"""Answering only where confident, with the primary direction and without."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from layercal.metrics import rivals, selective
from layercal.metrics.readings import Readings
from layercal.steering.evaluation import Sweep
from layercal.steering.verdicts import CHOSEN, FIXED, layer_choices

COVERAGES = np.linspace(0.05, 1, 39)  # at which a curve is kept


def summarise(sweep: Sweep) -> dict[str, list[dict]]:
    """Scores and risk-coverage curves of readings before and after steering.

    Parameters
    ----------
    sweep : Sweep
        Steered by the primary direction, scales as in :func:`layercal.steering.verdicts.summarise`.

    Returns
    -------
    dict of list of dict
        Each row with ``mode``, ``layer`` (None where it was chosen with the scale),
        ``layer_choice`` and ``steered``: ``selective``, with ``metric``, ``value``, ``ci_low`` and
        ``ci_high`` as of :func:`layercal.metrics.rivals.table`, changes being those from the
        unsteered reading; ``risk_coverage``, with ``coverage`` and ``risk``.
    """
    scores, curves = [], []
    for columns, before, after in _readings(sweep):
        scored = rivals.Scores(before, sweep.weights, sweep.n_bins)
        for steered, logits in ((False, before.logits), (True, after)):
            head = {**columns, "steered": steered}
            scores += [head | _json(row) for row in scored.of_logits(logits)]
            curves += [head | row for row in _curve(*sweep.read(logits))]
    return {"selective": scores, "risk_coverage": curves}


def _readings(sweep: Sweep) -> Iterator[tuple[dict, Readings, np.ndarray]]:
    """Reading of each mode and layer, and its logits once steered."""
    for mode in sweep.modes:
        for places in layer_choices(sweep, mode):
            logits = sweep.settings(sweep.by_fold(mode, sweep.directions[0]), places)
            before = Readings(sweep.unsteered(mode, places[0]), sweep.answer, {}, sweep.cluster)
            fixed = len(places) == 1
            columns = {"mode": mode, "layer": sweep.layers[places[0]] if fixed else None}
            columns["layer_choice"] = FIXED if fixed else CHOSEN
            yield columns, before, sweep.scored(logits, sweep.choose(logits))


def _curve(confidence: np.ndarray, correct: np.ndarray) -> Iterator[dict]:
    risk = selective.risk_coverage(confidence, correct)[1]
    for coverage in COVERAGES:
        yield {"coverage": float(coverage), "risk": selective.risk_at(risk, coverage)}


def _json(row: dict) -> dict:
    return {name: None if value != value else value for name, value in row.items()}
