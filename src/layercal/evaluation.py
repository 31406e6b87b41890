"""What steering did, with intervals: dose-response at every scale, and cross-fitted verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import softmax

from layercal import calibration, resampling
from layercal.steering import READ_LAYER


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
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Choose the scale for each fold on the other folds, and return what the fold then shows.

    Parameters
    ----------
    confidence, correct : array, shape (K, alphas, n)
        ``[f]`` holds the readings for outer fold f: questions of f under the direction fitted
        without f, questions of every other fold g under the one fitted without f and g.
    fold : array of int, shape (n,)
    alphas, accuracy_margin, n_bins
        As in :func:`select_alpha`.

    Returns
    -------
    confidence, correct : array, shape (n,)
        Each question scored once, at the scale chosen without its fold.
    chosen : list of float
        The scale of each fold.
    """
    scored, hits, chosen = np.empty(len(fold)), np.empty(len(fold)), []
    for f in range(len(confidence)):
        inside = fold == f
        best = select_alpha(
            confidence[f][:, ~inside], correct[f][:, ~inside], alphas, accuracy_margin, n_bins
        )
        scored[inside] = confidence[f, best, inside]
        hits[inside] = correct[f, best, inside]
        chosen.append(float(alphas[best]))
    return scored, hits, chosen


@dataclass
class Sweep:
    """Steered readings of all questions and how they came about.

    Attributes
    ----------
    logits : dict of array, shape (n, V, layers, alphas, n_options)
        One a mode, -inf where a question has no such option. The V directions are, for each
        estimator, the fits for the K outer folds, then the random ones.
    answer, fold, cluster : array of int, shape (n,)
        Of each row. The rotations and translations of a question share fold and cluster; they are
        resampled together.
    norms : array, shape (L + 1,)
        Mean residual norm a layer.
    estimators : sequence of str
    layers, alphas : sequence
        Settings of the sweep; ``alphas`` holds 0.
    accuracy_margin : float
    n_bins, draws, seed : int
    """

    logits: dict[str, np.ndarray]
    answer: np.ndarray
    fold: np.ndarray
    cluster: np.ndarray
    norms: np.ndarray
    estimators: Sequence[str]
    layers: Sequence[int]
    alphas: Sequence[float]
    accuracy_margin: float
    n_bins: int
    draws: int
    seed: int

    def __post_init__(self):
        self.n_folds = int(self.fold.max()) + 1
        self.weights = resampling.cluster_weights(self.cluster, self.draws, self.seed)
        first = next(iter(self.logits.values()))
        self.n_random = first.shape[1] - len(self.estimators) * self.n_folds

    def names(self) -> list[str]:
        """Directions: the estimators, then the random ones."""
        return [*self.estimators, *(f"random-{index:02d}" for index in range(self.n_random))]

    def readings(self, mode: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Confidence and correctness, each (K, layers, alphas, n), by outer fold.

        ``[f]`` of an estimator was steered by fits that left out fold f and the question's own
        fold; a random direction needs no fit, so its readings are the same for every f.
        """
        if name in self.estimators:
            start = self.estimators.index(name) * self.n_folds
            picked = self.logits[mode][:, start : start + self.n_folds]
        else:
            place = len(self.estimators) * self.n_folds + int(name.removeprefix("random-"))
            picked = self.logits[mode][:, [place] * self.n_folds]
        by_fold = np.moveaxis(picked, 0, -2)
        confidence = softmax(by_fold.astype(float), -1).max(-1)
        return confidence, by_fold.argmax(-1) == self.answer

    def scored(self, mode: str, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Held-out confidence and correctness at every setting, each (layers, alphas, n)."""
        confidence, correct = self.readings(mode, name)
        questions = np.arange(len(self.answer))
        return (
            np.moveaxis(confidence[self.fold, :, :, questions], 0, -1),
            np.moveaxis(correct[self.fold, :, :, questions], 0, -1),
        )

    def errors(self, confidence: np.ndarray, correct: np.ndarray) -> dict:
        """ECE and MCE of one setting, observed and resampled."""
        pair = confidence, correct.astype(float), self.weights, self.n_bins
        return {"ece": resampling.ece_sample(*pair), "mce": resampling.mce_sample(*pair)}

    def means(self, confidence: np.ndarray, correct: np.ndarray) -> dict:
        """Accuracy and confidence of one setting, per question."""
        return {"accuracy": correct.astype(float), "confidence": confidence}

    def resampled_mean(self, values: np.ndarray) -> np.ndarray:
        """Mean over each resample of the questions; (draws,)."""
        return self.weights @ values / len(values)


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
        ``metric``, ``value``, ``ci_low``, ``ci_high``, ``n``.
    """
    rows = []
    for mode in sweep.logits:
        for name in sweep.names():
            confidence, correct = sweep.scored(mode, name)
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
                    measured = _measure(sweep, confidence[place, index], correct[place, index])
                    rows += [{**setting, **one} for one in measured]
    return pd.DataFrame(rows).assign(n=len(sweep.answer))


def _measure(sweep: Sweep, confidence: np.ndarray, correct: np.ndarray) -> list[dict]:
    rows = []
    for metric, sample in sweep.errors(confidence, correct).items():
        low, high = resampling.error_interval(sample)
        rows.append((metric, sample.estimate, low, min(high, 1.0)))
    for metric, values in sweep.means(confidence, correct).items():
        low, high = resampling.interval(values.mean(), sweep.resampled_mean(values))
        rows.append((metric, values.mean(), max(low, 0.0), min(high, 1.0)))
    return [dict(zip(("metric", "value", "ci_low", "ci_high"), row, strict=True)) for row in rows]


def summarise(sweep: Sweep) -> list[dict]:
    """Verdict for each estimator, mode and layer, at scales chosen without the scored questions.

    Parameters
    ----------
    sweep : Sweep

    Returns
    -------
    list of dict
        Baseline and steered ECE, MCE and accuracy, changes with paired 95 % intervals, the p-value
        of the ECE change and the same adjusted for all rows (Holm), the null floor of the baseline,
        the scales chosen, the same for the random directions under the same selection rule, the
        outcome and a verdict in words.
    """
    rows = [
        _summarise_one(sweep, name, mode, place)
        for mode in sweep.logits
        for name in sweep.estimators
        for place in range(len(sweep.layers))
    ]
    for row, adjusted in zip(rows, resampling.holm([row["ece_p"] for row in rows]), strict=True):
        row["ece_p_holm"] = float(adjusted)
        row["outcome"] = _outcome(row)
        row["verdict"] = _verdict(row)
    return rows


def _summarise_one(sweep: Sweep, name: str, mode: str, place: int) -> dict:
    final = len(sweep.norms) - 1
    confidence, correct = sweep.readings(mode, name)
    none = list(sweep.alphas).index(0)
    before = (confidence[0, place, none], correct[0, place, none])
    *after, chosen = _select(sweep, confidence[:, place], correct[:, place])
    found = {
        "direction": name,
        "mode": mode,
        "layer": sweep.layers[place],
        "read_at": READ_LAYER[mode](sweep.layers[place], final),
        "n": len(sweep.answer),
        "alphas": chosen,
        **_changes(sweep, before, after),
    }
    uniform = np.random.default_rng(sweep.seed).random(sweep.weights.shape, np.float32)
    null = sweep.errors(*before)["ece"].null([(uniform < before[0]).astype(np.float32)])
    found["ece_null_mean"] = float(null.mean())
    found["ece_null_high"] = float(np.quantile(null, 0.95))
    found["ece_relative_change"] = found["ece_change"] / found["ece_before"]
    found["accuracy_margin"] = sweep.accuracy_margin
    found["accuracy_kept"] = resampling.equivalent(
        found["accuracy_change_low"], found["accuracy_change_high"], sweep.accuracy_margin
    )
    controls = [_random_change(sweep, mode, place, r) for r in sweep.names()[-sweep.n_random :]]
    found["random_relative_change_mean"] = float(np.mean(controls))
    found["random_relative_change_best"] = float(np.min(controls))
    found["random_n"] = len(controls)
    return found


def _changes(sweep: Sweep, before, after) -> dict:
    """Each metric before and after, and its change with a paired interval."""
    found = {}
    errors = sweep.errors(*before), sweep.errors(*after)
    for metric in errors[0]:
        old, new = (side[metric] for side in errors)
        change = resampling.error_difference(new, old)
        found |= _change(metric, old.estimate, new.estimate, change.low, change.high)
        found[f"{metric}_p"] = change.p
    means = sweep.means(*before), sweep.means(*after)
    for metric in means[0]:
        old, new = (side[metric] for side in means)
        resampled = sweep.resampled_mean(new - old)
        low, high = resampling.interval((new - old).mean(), resampled)
        found |= _change(metric, old.mean(), new.mean(), low, high)
    return found


def _change(metric: str, old: float, new: float, low: float, high: float) -> dict:
    return {
        f"{metric}_before": float(old),
        f"{metric}_after": float(new),
        f"{metric}_change": float(new - old),
        f"{metric}_change_low": float(low),
        f"{metric}_change_high": float(high),
    }


def _select(sweep: Sweep, confidence: np.ndarray, correct: np.ndarray):
    return cross_select(
        confidence, correct, sweep.fold, sweep.alphas, sweep.accuracy_margin, sweep.n_bins
    )


def _random_change(sweep: Sweep, mode: str, place: int, name: str) -> float:
    """Relative ECE change of one random direction under the same selection rule."""
    confidence, correct = (one[:, place] for one in sweep.readings(mode, name))
    none = list(sweep.alphas).index(0)
    before = calibration.ece(confidence[0, none], correct[0, none], sweep.n_bins)
    *after, _ = _select(sweep, confidence, correct)
    return float(calibration.ece(*after, sweep.n_bins) / before - 1)


def _outcome(found: dict) -> str:
    """Name of the outcome: nothing is called lowered or raised beyond Holm's level of 0.05."""
    if found["ece_before"] <= found["ece_null_high"]:
        return "nothing to gain"
    if not any(found["alphas"]):
        return "unchanged, no scale helps"
    if found["ece_p_holm"] > 0.05:
        return "undecided"
    if found["ece_change"] < 0:
        beats = found["ece_relative_change"] < found["random_relative_change_best"]
        return "lowered" if beats else "lowered, as by random directions"
    return "raised"


def _verdict(found: dict) -> str:
    where = (
        f"{found['direction']} at layer {found['layer']}, {found['mode']} "
        f"(read at layer {found['read_at']})"
    )
    if _outcome(found) == "nothing to gain":
        return (
            f"{where}: ECE {found['ece_before']:.3f} already stands at its null floor (a perfectly "
            f"calibrated model shows {found['ece_null_mean']:.3f} on average and up to "
            f"{found['ece_null_high']:.3f} with n = {found['n']}); nothing to gain at this n."
        )
    accuracy = (
        f"accuracy changes by {found['accuracy_change']:+.3f} "
        f"({found['accuracy_change_low']:+.3f} to {found['accuracy_change_high']:+.3f}), "
        + (
            f"kept within {found['accuracy_margin']}"
            if found["accuracy_kept"]
            else f"not shown to stay within {found['accuracy_margin']}"
        )
    )
    return (
        f"{where}: ECE {_outcome(found)}, {found['ece_before']:.3f} to {found['ece_after']:.3f} "
        f"({found['ece_relative_change']:+.0%}; change {found['ece_change']:+.3f}, 95 % CI "
        f"{found['ece_change_low']:+.3f} to {found['ece_change_high']:+.3f}, p = "
        f"{found['ece_p_holm']:.2g} after Holm); random directions "
        f"{found['random_relative_change_mean']:+.0%} on average, "
        f"{found['random_relative_change_best']:+.0%} at best of {found['random_n']}; {accuracy}."
    )
