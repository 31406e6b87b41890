"""Steered readings of all questions, the choice of scales, and dose-response with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from layercal import calibration, resampling
from layercal.scoring import Scoring
from layercal.steering import READ_LAYER

RANDOM = "random-"


def select_alpha(
    confidence: np.ndarray,
    correct: np.ndarray,
    alphas: Sequence[float],
    accuracy_margin: float,
    n_bins: int = 10,
) -> int:
    """Choose the scale with the lowest ECE whose accuracy falls by no more than the margin.

    Scale 0 is always allowed, so the choice is never worse than none on its own split; among
    equals the smallest scale wins, and nothing is done when nothing helps.

    Parameters
    ----------
    confidence, correct : array, shape (alphas, m)
        On the selection split.
    alphas : sequence of float
        Contains 0.
    accuracy_margin : float
    n_bins : int

    Returns
    -------
    int
        Index into ``alphas``.
    """
    errors = calibration.ece(confidence, correct, n_bins)
    accuracy = correct.mean(-1)
    none = list(alphas).index(0)
    allowed = accuracy >= accuracy[none] - accuracy_margin
    order = sorted(range(len(alphas)), key=lambda index: abs(alphas[index]))
    return min((index for index in order if allowed[index]), key=lambda index: errors[index])


def cross_select(
    confidence: np.ndarray,
    correct: np.ndarray,
    fold: np.ndarray,
    alphas: Sequence[float],
    accuracy_margin: float,
    n_bins: int = 10,
    among: np.ndarray | None = None,
) -> list[int]:
    """Choose the setting for each fold on the other folds.

    Parameters
    ----------
    confidence, correct : array, shape (K, settings, n)
        ``[f]`` holds the readings for outer fold f: questions of f under the direction fitted
        without f, questions of every other fold g under the one fitted without f and g.
    fold : array of int, shape (n,)
    alphas : sequence of float
        Scale of each setting.
    accuracy_margin, n_bins
        As in :func:`select_alpha`.
    among : array of bool, shape (n,), optional
        Questions on which to choose; all if left out.

    Returns
    -------
    list of int
        Index of the setting chosen for each fold.
    """
    among = np.ones(len(fold), bool) if among is None else among
    return [
        select_alpha(
            confidence[f][:, (fold != f) & among],
            correct[f][:, (fold != f) & among],
            alphas,
            accuracy_margin,
            n_bins,
        )
        for f in range(len(confidence))
    ]


@dataclass(kw_only=True)
class Sweep(Scoring):
    """Steered readings of all questions and how they came about.

    Attributes
    ----------
    logits : dict of array, shape (n, V, layers, alphas, n_options)
        One a mode, -inf where a question has no such option. The V directions are, for each
        variant, the fits for the K outer folds, then the random ones, which those with the final
        norm frozen have not.
    fold : array of int, shape (n,)
        Of each row; those of one cluster share it.
    norms : array, shape (L + 1,)
        Mean residual norm a layer.
    variants : sequence of str
        What was done, the primary direction first.
    layers, alphas : sequence
        Settings of the sweep; ``alphas`` holds 0.
    n_folds : int
    """

    logits: dict[str, np.ndarray]
    fold: np.ndarray
    norms: np.ndarray
    variants: Sequence[str]
    layers: Sequence[int]
    alphas: Sequence[float]
    n_folds: int

    def __post_init__(self):
        self.none = list(self.alphas).index(0)
        self.n_random = self.logits[self.modes[0]].shape[1] - len(self.variants) * self.n_folds

    @property
    def modes(self) -> list[str]:
        """Modes of reading, with the final norm live."""
        return [mode for mode in READ_LAYER if mode in self.logits]

    @property
    def random(self) -> list[str]:
        """Names of the random directions."""
        return [f"{RANDOM}{index:02d}" for index in range(self.n_random)]

    def take(self, rows: np.ndarray) -> Sweep:
        """Keep only some of the questions; folds stay as they were."""
        return replace(
            self,
            logits={mode: logits[rows] for mode, logits in self.logits.items()},
            answer=self.answer[rows],
            fold=self.fold[rows],
            cluster=self.cluster[rows],
            question=None if self.question is None else self.question[rows],
        )

    def steered(self, mode: str, name: str) -> np.ndarray:
        """Logits by outer fold; (K, layers, alphas, n, n_options).

        ``[f]`` of a variant was steered by fits that left out fold f and the question's own fold; a
        random direction needs no fit, so its readings are the same for every f.
        """
        if name.startswith(RANDOM):
            place = len(self.variants) * self.n_folds + int(name.removeprefix(RANDOM))
            picked = self.logits[mode][:, [place] * self.n_folds]
        else:
            start = self.variants.index(name) * self.n_folds
            picked = self.logits[mode][:, start : start + self.n_folds]
        return np.moveaxis(picked, 0, -2)

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
        ``metric``, ``value``, ``ci_low``, ``ci_high`` (NaN for random directions and MCE), ``n``.
    """
    rows = []
    for mode in sweep.modes:
        for name in [*sweep.variants, *sweep.random]:
            confidence, correct = sweep.read(sweep.held_out(mode, name))
            for place, layer in enumerate(sweep.layers):
                for index, alpha in enumerate(sweep.alphas):
                    setting = {
                        "direction": name,
                        "layer": layer,
                        "alpha": alpha,
                        "eta": alpha * sweep.norms[layer],
                        "mode": mode,
                        "position": "answer",
                        "fold": "held-out",
                    }
                    pair = confidence[place, index], correct[place, index]
                    measured = _measure(sweep, *pair, with_interval=not name.startswith(RANDOM))
                    rows += [{**setting, **one} for one in measured]
    return pd.DataFrame(rows).assign(n=sweep.n_questions)


def _measure(sweep: Sweep, confidence, correct, with_interval: bool) -> list[dict]:
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
    return [
        {"metric": name, "value": value, "ci_low": max(low, 0.0), "ci_high": min(high, 1.0)}
        for (name, value), (low, high) in zip(values.items(), bounds.values(), strict=True)
    ]
