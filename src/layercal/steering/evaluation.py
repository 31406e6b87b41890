"""Steered readings of all questions, the choice of scales, and dose-response with intervals."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from layercal.metrics import calibration, resampling
from layercal.metrics.paired import losses, mean_change
from layercal.metrics.scoring import Scoring
from layercal.steering import baselines
from layercal.steering.interventions import READ_LAYER
from layercal.steering.tally import ALL_CONTROLS, CONTROL, Tally, choose

GROWTH_TEMPERATURE = "temperature of equal growth"


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
    found = []
    for f in range(len(nll)):
        others = (fold != f) & among
        found.append(
            select_scale(nll[f][:, others], correct[f][:, others], alphas, accuracy_margin)
        )
    return found


@dataclass(kw_only=True)
class Sweep(Scoring):
    """Steered readings of all questions and how they came about.

    Attributes
    ----------
    logits : dict of array, shape (n, V, layers, alphas, n_options)
        One a mode, -inf where a question has no such option. The V directions are, for each
        variant, the fits for the K outer folds, then the first control, which those with the final
        norm frozen have not.
    growth : dict of array, shape (n, K, layers, alphas)
        One a mode: by what the primary direction grows the scale that the final norm divides by.
    controls : Tally
        All control directions.
    fold : array of int, shape (n,)
        Of each row; those of one cluster share it.
    norms : array, shape (L + 1,)
        Mean residual norm a layer.
    variants : sequence of str
        What was done, the primary direction first.
    not_in_lens : collection of str
        Variants that, read at the steered layer, are another variant.
    layers, alphas : sequence
        Settings of the sweep; ``alphas`` holds 0.
    n_folds : int
    """

    logits: dict[str, np.ndarray]
    growth: dict[str, np.ndarray]
    controls: Tally
    fold: np.ndarray
    norms: np.ndarray
    variants: Sequence[str]
    not_in_lens: Collection[str] = ()
    layers: Sequence[int]
    alphas: Sequence[float]
    n_folds: int

    def __post_init__(self):
        self.none = list(self.alphas).index(0)

    @property
    def modes(self) -> list[str]:
        """Modes of reading, with the final norm live."""
        return [mode for mode in READ_LAYER if mode in self.logits]

    def done(self, mode: str) -> list[str]:
        """Variants that are something of their own in a mode."""
        return [one for one in self.variants if mode != "lens" or one not in self.not_in_lens]

    def take(self, rows: np.ndarray) -> Sweep:
        """Keep only some of the questions; folds stay as they were."""
        return replace(
            self,
            logits={mode: logits[rows] for mode, logits in self.logits.items()},
            growth={mode: growth[rows] for mode, growth in self.growth.items()},
            controls=self.controls.take(rows),
            answer=self.answer[rows],
            fold=self.fold[rows],
            cluster=self.cluster[rows],
            question=None if self.question is None else self.question[rows],
        )

    def steered(self, mode: str, name: str) -> np.ndarray:
        """Logits by outer fold; (K, layers, alphas, n, n_options).

        ``[f]`` of a variant was steered by fits that left out fold f and the question's own fold; a
        control needs no fit, so its readings are the same for every f. The temperature of equal
        growth divides the unsteered logits by what the primary direction grows the norm's scale.
        """
        if name == GROWTH_TEMPERATURE:
            still = self.logits[mode][:, :1, :, [self.none]]
            picked = still / self.growth[mode][..., None]
        elif name == CONTROL:
            place = len(self.variants) * self.n_folds
            picked = self.logits[mode][:, [place] * self.n_folds]
        else:
            start = self.variants.index(name) * self.n_folds
            picked = self.logits[mode][:, start : start + self.n_folds]
        return np.moveaxis(picked, 0, -2)

    def settings(self, mode: str, name: str, places: Sequence[int]) -> np.ndarray:
        """Logits of all settings to choose among; (K, settings, n, n_options)."""
        steered = self.steered(mode, name)[:, list(places)]
        return steered.reshape(len(steered), -1, *steered.shape[3:])

    def choose(self, logits: np.ndarray, among: np.ndarray | None = None) -> list[int]:
        """Setting chosen for each fold on the other folds, from :meth:`settings`."""
        alphas = list(self.alphas) * (logits.shape[1] // len(self.alphas))
        nll, correct = losses(logits, self.answer)["nll"], logits.argmax(-1) == self.answer
        return cross_select(nll, correct, self.fold, alphas, self.accuracy_margin, among)

    def scored(self, logits: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
        """Logits of each question at what was chosen without its fold; (n, n_options)."""
        found = np.empty(logits.shape[2:])
        for f, setting in enumerate(chosen):
            found[self.fold == f] = logits[f, setting, self.fold == f]
        return found

    def tempered(self, logits: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
        """The same after temperature scaling, fitted on the other folds at their choice."""
        found = np.empty(logits.shape[2:])
        for f, setting in enumerate(chosen):
            inside = self.fold == f
            one = logits[f, setting].astype(float)
            scale = baselines.temperature(one[~inside], self.answer[~inside])
            found[inside] = scale(one[inside])
        return found

    def unsteered(self, mode: str, place: int) -> np.ndarray:
        """Logits at a layer without steering; (n, n_options)."""
        return self.logits[mode][:, 0, place, self.none]

    def held_out(self, mode: str, name: str) -> np.ndarray:
        """Logits of each question under the fit without its fold; (layers, alphas, n, options)."""
        steered = self.steered(mode, name)
        return np.moveaxis(steered[self.fold, :, :, np.arange(len(self.fold))], 0, -2)


def dose_response(sweep: Sweep) -> pd.DataFrame:
    """Metrics of the held-out questions at every direction, mode, layer and scale.

    Parameters
    ----------
    sweep : Sweep

    Returns
    -------
    DataFrame
        ``direction``, ``layer``, ``alpha``, ``eta`` (alpha times the mean residual norm), ``mode``,
        ``position``, ``fold`` ("held-out": each question under the fit without its fold),
        ``metric``, ``value``, ``ci_low``, ``ci_high`` (NaN for MCE), ``n``. The first control,
        ``CONTROL``, has no interval; the rows ``ALL_CONTROLS`` hold the mean of all controls and,
        as ``ci_low`` and ``ci_high``, the range of the middle 95 % of them.
    """
    rows = []
    for mode in sweep.modes:
        for name in [*sweep.done(mode), CONTROL]:
            held_out = sweep.held_out(mode, name)
            for place, index in np.ndindex(len(sweep.layers), len(sweep.alphas)):
                measured = _measure(sweep, held_out[place, index], name != CONTROL)
                rows += [{**_setting(sweep, mode, name, place, index), **one} for one in measured]
        rows += _of_controls(sweep, mode)
    return pd.DataFrame(rows).assign(n=sweep.n_questions)


def _setting(sweep: Sweep, mode: str, name: str, place: int, index: int) -> dict:
    return {
        "direction": name,
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
                **_setting(sweep, mode, ALL_CONTROLS, place, index),
                "metric": metric,
                "value": float(values[place, :, index].mean()),
                "ci_low": float(low[place, index]),
                "ci_high": float(high[place, index]),
            }


def _measure(sweep: Sweep, logits: np.ndarray, with_interval: bool) -> list[dict]:
    confidence, correct = sweep.read(logits)
    values = {
        "ece": float(calibration.ece(confidence, correct, sweep.n_bins)),
        "mce": float(calibration.mce(confidence, correct, sweep.n_bins)),
        **{name: float(one.mean()) for name, one in sweep.means(confidence, correct).items()},
    }
    bounds = dict.fromkeys(values, (np.nan, np.nan))
    if with_interval:
        # unfiltered, MCE has no honest interval
        sample = sweep.ece_sample(confidence, correct)
        bounds["ece"] = resampling.error_interval(sample)
        for metric, one in sweep.means(confidence, correct).items():
            bounds[metric] = resampling.interval(values[metric], sweep.resampled_mean(one))
    bounds = {name: (max(low, 0.0), min(high, 1.0)) for name, (low, high) in bounds.items()}
    for name, one in losses(logits, sweep.answer).items():
        values[name] = float(one.mean())
        bounds[name] = (np.nan, np.nan)
        if with_interval:
            bounds[name] = mean_change(one, sweep.cluster).interval()
    return [
        {"metric": name, "value": value, "ci_low": bounds[name][0], "ci_high": bounds[name][1]}
        for name, value in values.items()
    ]
