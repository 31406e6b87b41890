"""Steered readings of all questions, the choice of scales, and dose-response with intervals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd

from layercal.metrics import registry, resampling
from layercal.metrics.paired import losses, mean_change
from layercal.metrics.scoring import Scoring
from layercal.steering import baselines
from layercal.steering.fitted import Direction
from layercal.steering.steered import MODES, Steered
from layercal.steering.tally import ALL_CONTROLS, CONTROL, Tally, choose

GROWTH_TEMPERATURE = "temperature of equal growth"
# columns of the matched controls
FIRST = {"direction": CONTROL, "kind": "matched"}
ALL = {"direction": ALL_CONTROLS, "kind": "matched"}


def select_scale(
    nll: np.ndarray, correct: np.ndarray, alphas: Sequence[float], accuracy_margin: float
) -> int:
    """Index of the scale that :func:`layercal.steering.tally.choose` takes; by question.

    Parameters
    ----------
    nll, correct : array, shape (alphas, m)
        On the selection split, question by question.
    alphas : sequence of float
    accuracy_margin : float
    """
    return int(choose(nll.mean(-1), correct.mean(-1), alphas, accuracy_margin))


def cross_select(
    nll: np.ndarray,
    correct: np.ndarray,
    fold: np.ndarray,
    alphas: Sequence[float],
    accuracy_margin: float,
    among: np.ndarray | None = None,
) -> list[int]:
    """Choose the setting for each fold on the other folds.

    Parameters
    ----------
    nll, correct : array, shape (K, settings, n)
        ``[f]`` holds the readings for outer fold f: questions of f under the direction fitted
        without f, questions of every other fold g under the one fitted without f and g.
    fold : array of int, shape (n,)
    alphas : sequence of float
        Scale of each setting.
    accuracy_margin : float
        As in :func:`select_scale`.
    among : array of bool, shape (n,), optional
        Questions on which to choose; all if left out.

    Returns
    -------
    list of int
        Index of the setting chosen for each fold.
    """
    among = np.ones(len(fold), bool) if among is None else among
    settings = []
    for f in range(len(nll)):
        others = (fold != f) & among
        settings.append(
            select_scale(nll[f][:, others], correct[f][:, others], alphas, accuracy_margin)
        )
    return settings


@dataclass(kw_only=True)
class Sweep(Scoring):
    """Steered readings of all questions and how they came about.

    Attributes
    ----------
    steered : dict of Steered
        By mode.
    controls : Tally
        All control directions.
    fold : array of int, shape (n,)
        Of each row; those of one cluster share it.
    norms : array, shape (L + 1,)
        Mean residual norm a layer.
    directions : sequence of Direction
        What was done, the primary direction first.
    layers, alphas : sequence
        Settings of the sweep; ``alphas`` holds 0.
    """

    steered: dict[str, Steered]
    controls: Tally
    fold: np.ndarray
    norms: np.ndarray
    directions: Sequence[Direction]
    layers: Sequence[int]
    alphas: Sequence[float]

    def __post_init__(self) -> None:
        self.none = list(self.alphas).index(0)

    @property
    def modes(self) -> list[str]:
        """Modes of reading."""
        return [mode for mode in MODES if mode in self.steered]

    def done(self, mode: str) -> list[Direction]:
        """What is something of its own in a mode: read where it is steered, a turn is no more."""
        return [each for each in self.directions if (mode, each.intervention) != ("lens", "rotate")]

    def take(self, rows: np.ndarray) -> Sweep:
        """Keep only some of the questions; folds stay as they were."""
        return replace(
            self,
            steered={mode: steered.take(rows) for mode, steered in self.steered.items()},
            controls=self.controls.take(rows),
            answer=self.answer[rows],
            fold=self.fold[rows],
            cluster=self.cluster[rows],
            question=None if self.question is None else self.question[rows],
        )

    def by_fold(self, mode: str, direction: Direction, frozen: bool = False) -> np.ndarray:
        """Logits by outer fold; (K, layers, alphas, n, n_options).

        ``[f]`` was steered by fits that left out fold f and the question's own fold.
        """
        read = self.steered[mode].frozen if frozen else self.steered[mode].fitted
        return np.moveaxis(read[:, self.directions.index(direction)], 0, -2)

    def grown(self, mode: str) -> np.ndarray:
        """Logits at the temperature of equal growth by outer fold, as :meth:`by_fold`.

        Unsteered, divided by what the primary direction grows the norm's scale.
        """
        still = self.steered[mode].fitted[:, 0][:, :1, :, [self.none]]
        return np.moveaxis(still / self.steered[mode].growth[..., None], 0, -2)

    def settings(self, by_fold: np.ndarray, places: Sequence[int]) -> np.ndarray:
        """Logits of all settings to choose among, at some layers; (K, settings, n, n_options)."""
        chosen = by_fold[:, list(places)]
        return chosen.reshape(len(chosen), -1, *chosen.shape[3:])

    def choose(self, logits: np.ndarray, among: np.ndarray | None = None) -> list[int]:
        """Setting chosen for each fold on the other folds, from :meth:`settings`."""
        alphas = list(self.alphas) * (logits.shape[1] // len(self.alphas))
        # fold by fold: in float64 all of them at once would be the most that is ever held
        nll, correct = np.empty(logits.shape[:-1]), np.empty(logits.shape[:-1], bool)
        for f, of_fold in enumerate(logits):
            nll[f] = losses(of_fold, self.answer)["nll"]
            correct[f] = of_fold.argmax(-1) == self.answer
        return cross_select(nll, correct, self.fold, alphas, self.accuracy_margin, among)

    def scored(self, logits: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
        """Logits of each question at what was chosen without its fold; (n, n_options)."""
        held_out = np.empty(logits.shape[2:])
        for f, setting in enumerate(chosen):
            held_out[self.fold == f] = logits[f, setting, self.fold == f]
        return held_out

    def tempered(self, logits: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
        """The same after temperature scaling, fitted on the other folds at their choice."""
        held_out = np.empty(logits.shape[2:])
        for f, setting in enumerate(chosen):
            inside = self.fold == f
            fitted = logits[f, setting].astype(float)
            scale = baselines.temperature(fitted[~inside], self.answer[~inside])
            held_out[inside] = scale(fitted[inside])
        return held_out

    def unsteered(self, mode: str, place: int) -> np.ndarray:
        """Logits at a layer without steering; (n, n_options)."""
        return self._still[mode][:, place]

    @cached_property
    def _still(self) -> dict[str, np.ndarray]:
        """Logits without steering by mode; (n, layers, n_options)."""
        return {
            mode: read.fitted[:, 0][:, 0, :, self.none].copy()
            for mode, read in self.steered.items()
        }

    def held_out(self, mode: str, direction: Direction) -> np.ndarray:
        """Logits of each question under the fit without its fold; (layers, alphas, n, options)."""
        by_fold = self.by_fold(mode, direction)
        return np.moveaxis(by_fold[self.fold, :, :, np.arange(len(self.fold))], 0, -2)

    def under_control(self, mode: str) -> np.ndarray:
        """Logits of each question under the first control; (layers, alphas, n, n_options)."""
        return np.moveaxis(self.steered[mode].controls[:, 0], 0, -2)


def dose_response(sweep: Sweep) -> pd.DataFrame:
    """Metrics of the held-out questions at every direction, mode, layer and scale.

    Parameters
    ----------
    sweep : Sweep

    Returns
    -------
    DataFrame
        ``direction`` and the other fields of :class:`Direction`, ``layer``, ``alpha``, ``eta``
        (alpha times the mean residual norm), ``mode``, ``position``, ``fold`` ("held-out": each
        question under the fit without its fold), ``metric``, ``value``, ``ci_low``, ``ci_high``
        (NaN for MCE), ``n``. The first control, ``CONTROL``, has no interval; the rows
        ``ALL_CONTROLS`` hold the mean of all controls and, as ``ci_low`` and ``ci_high``, the range
        of the middle 95 % of them.
    """
    rows: list[dict] = []
    for mode in sweep.modes:
        for direction in sweep.done(mode):
            rows += _curve(sweep, mode, direction.columns(), sweep.held_out(mode, direction))
        rows += _curve(sweep, mode, FIRST, sweep.under_control(mode), with_interval=False)
        rows += _of_controls(sweep, mode)
    return pd.DataFrame(rows).assign(n=sweep.n_questions)


def _curve(
    sweep: Sweep, mode: str, columns: dict, held_out: np.ndarray, with_interval: bool = True
) -> Iterator[dict]:
    """Metrics of logits (layers, alphas, n, n_options)."""
    for place, index in np.ndindex(held_out.shape[:2]):
        setting = columns | _setting(sweep, mode, place, index)
        for measured in _measure(sweep, held_out[place, index], with_interval):
            yield setting | measured


def _setting(sweep: Sweep, mode: str, place: int, index: int) -> dict:
    return {
        "layer": sweep.layers[place],
        "alpha": sweep.alphas[index],
        "eta": sweep.alphas[index] * sweep.norms[sweep.layers[place]],
        "mode": mode,
        "position": "answer",
        "fold": "held-out",
    }


def _of_controls(sweep: Sweep, mode: str) -> Iterator[dict]:
    for metric, values in sweep.controls.at_each_scale(mode).items():
        low, high = np.quantile(values, [0.025, 0.975], axis=1)
        for place, index in np.ndindex(low.shape):
            yield {
                **ALL,
                **_setting(sweep, mode, place, index),
                "metric": metric,
                "value": float(values[place, :, index].mean()),
                "ci_low": float(low[place, index]),
                "ci_high": float(high[place, index]),
            }


def _measure(sweep: Sweep, logits: np.ndarray, with_interval: bool) -> list[dict]:
    confidence, correct = sweep.read(logits)
    weights = sweep.weights if with_interval else None
    none = np.nan, np.nan
    measured = {
        name: entry.value(confidence, correct, weights, sweep.n_bins)
        for name, entry in registry.BINNED.items()
        if entry.dose
    }
    for name, scores in sweep.means(confidence, correct).items():
        value = float(scores.mean())
        ends = resampling.interval(value, sweep.resampled_mean(scores)) if with_interval else none
        measured[name] = value, *ends
    measured = {name: (value, max(a, 0.0), min(b, 1.0)) for name, (value, a, b) in measured.items()}
    for name, scores in losses(logits, sweep.answer).items():
        ends = mean_change(scores, sweep.cluster).interval() if with_interval else none
        measured[name] = float(scores.mean()), *ends
    return [
        {"metric": name, "value": value, "ci_low": low, "ci_high": high}
        for name, (value, low, high) in measured.items()
    ]
