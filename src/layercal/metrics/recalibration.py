"""What the correction is made of: scale, which one temperature takes out, and knowledge.

Each layer's reading is recalibrated by a fit on the other folds: by one temperature, by a factor
and a shift a letter, or through its confidence alone, by Platt scaling or by any rising map
(isotonic regression). What a score gains is calibration; what is left is refinement (DeGroot &
Fienberg 1983; for proper scores Broecker 2009, doi:10.1002/qj.456).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import softmax
from scipy.stats import t as student
from sklearn.isotonic import IsotonicRegression

from layercal.metrics import paired, registry, resampling, selective
from layercal.metrics.readings import Readings

# temperatures that are tried; beyond them confidence is that of guessing, or 1
TEMPERATURES = 1e-2, 1e2
LEVEL = 0.05  # of the intervals of all layers' steps together
TINY = 1e-12  # probability of every option, so that those not chosen share what is left
STEPS = 60  # of a safeguarded Newton search; some ten are taken
NONE, TEMPERATURE, VECTOR = "none", "temperature", "vector scaling"
PLATT, ISOTONIC = "Platt scaling", "isotonic regression"
# what each layer adds to the one below, once both are at their temperature, and by its scale
KNOWLEDGE, SCALE = "knowledge_step", "scale_step"


def inverse_temperature(logits: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Factor of the logits that gives the answers the highest likelihood (Guo et al. 2017).

    NLL is convex in the factor, whose root of the slope is bracketed and found by Newton steps.

    Parameters
    ----------
    logits : array, shape (..., n, k)
        -inf where a question has no such option.
    answer : array of int, shape (n,)

    Returns
    -------
    array, shape (...)
        One over the temperature, within ``TEMPERATURES``.
    """
    low, high = (np.full(logits.shape[:-2], 1 / end) for end in TEMPERATURES[::-1])
    factor = np.clip(np.ones_like(low), low, high)
    for _ in range(STEPS):
        slope, bend = (part.sum(-1) for part in _slopes(logits, answer, factor))
        low, high = np.where(slope < 0, factor, low), np.where(slope > 0, factor, high)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = factor - slope / bend
        inside = (newton > low) & (newton < high)
        moved = np.where(inside, newton, np.sqrt(low * high))
        if np.abs(np.log(moved / factor)).max(initial=0) < 1e-10:
            return moved
        factor = moved
    return factor


def _slopes(
    logits: np.ndarray, answer: np.ndarray, factor: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First and second derivative of each question's NLL by the factor; (..., n) each."""
    finite = np.where(np.isfinite(logits), logits, 0.0).astype(float)
    probability = softmax(np.asarray(factor)[..., None, None] * logits.astype(float), -1)
    mean = (probability * finite).sum(-1)
    given = np.broadcast_to(answer[:, None], (*finite.shape[:-1], 1))
    of_answer = np.take_along_axis(finite, given, -1)[..., 0]
    return mean - of_answer, (probability * finite**2).sum(-1) - mean**2


def temperature_interval(
    logits: np.ndarray, answer: np.ndarray, cluster: np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Optimal temperature of a reading with its interval.

    From the sandwich variance of the maximum likelihood estimate (Huber 1967), clusters of
    questions counted as one, on the scale of its logarithm.

    Parameters
    ----------
    logits : array, shape (..., n, k)
    answer, cluster : array of int, shape (n,)
    level : float

    Returns
    -------
    value, low, high : array, shape (...)
        Infinite or 0 where no temperature within ``TEMPERATURES`` is the best.
    """
    factor = inverse_temperature(logits, answer)
    slope, bend = _slopes(logits, answer, factor)
    _, place = np.unique(cluster, return_inverse=True)
    groups = int(place.max()) + 1
    sums = np.stack([np.bincount(place, row) for row in slope.reshape(-1, len(answer))])
    spread = np.sqrt(groups / (groups - 1) * (sums**2).sum(-1)).reshape(factor.shape)
    bent = bend.sum(-1)
    flat = bent == 0  # all options alike: every temperature reads the same
    reach = student.ppf((1 + level) / 2, groups - 1) * spread / (np.where(flat, 1, bent) * factor)
    ends = np.exp(-np.log(factor) - reach), np.exp(-np.log(factor) + reach)
    edge = np.isclose(factor, 1 / TEMPERATURES[0]) | np.isclose(factor, 1 / TEMPERATURES[1])
    edge |= flat
    return 1 / factor, np.where(edge, 0.0, ends[0]), np.where(edge, np.inf, ends[1])


def cross_tempered(logits: np.ndarray, answer: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Logits over the temperature that is best on the other folds.

    Parameters
    ----------
    logits : array, shape (..., n, k)
    answer, fold : array of int, shape (n,)

    Returns
    -------
    array, shape (..., n, k)
    """
    scaled = np.empty(logits.shape)
    for f in np.unique(fold):
        inside = fold == f
        factor = inverse_temperature(logits[..., ~inside, :], answer[~inside])
        scaled[..., inside, :] = factor[..., None, None] * logits[..., inside, :]
    return scaled


def isotonic(confidence: np.ndarray, correct: np.ndarray) -> Callable:
    """The rising map of confidence that is nearest to correctness (Zadrozny & Elkan 2002)."""
    fitted = IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip").fit(confidence, correct)
    return fitted.predict


MAPS = {PLATT: selective.platt, ISOTONIC: isotonic}


def cross_mapped(
    fit: Callable, confidence: np.ndarray, correct: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """Confidence of each fold through a map that is fitted on the others; arrays of shape (n,)."""
    mapped = np.empty(len(fold))
    for f in np.unique(fold):
        inside = fold == f
        mapped[inside] = fit(confidence[~inside], correct[~inside])(confidence[inside])
    return mapped


def spread_brier(read: Readings, confidence: np.ndarray) -> np.ndarray:
    """Brier score over options once the chosen one has another probability; (n,).

    The rest is spread over the others in proportion to what they had.

    Parameters
    ----------
    read : Readings
        Of one layer.
    confidence : array, shape (n,)
    """
    there = np.isfinite(read.logits)
    others = np.where(there, np.exp(read.log_probability), 0.0) + there * TINY
    rows, chosen = np.arange(len(confidence)), read.logits.argmax(-1)
    others[rows, chosen] = 0
    spread = others / others.sum(-1, keepdims=True) * (1 - confidence)[:, None]
    spread[rows, chosen] = confidence
    return ((spread - np.eye(spread.shape[-1])[read.answer]) ** 2).sum(-1)


@dataclass
class _Draws:
    """What intervals and floors of all layers are drawn from."""

    cluster: np.ndarray
    weights: np.ndarray
    uniform: np.ndarray | None  # none of questions in clusters
    n_bins: int


def table(
    read: Readings,
    scaled: dict[str, np.ndarray],
    fold: np.ndarray,
    weights: np.ndarray,
    n_bins: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores of every layer before and after each recalibration.

    Parameters
    ----------
    read : Readings
        ``logits`` of shape (layers, n, k).
    scaled : dict of array, shape (layers, n, k)
        Recalibration -> held-out logits; :func:`cross_tempered` under ``TEMPERATURE``.
    fold : array of int, shape (n,)
    weights : array, shape (draws, n)
        Bootstrap resamples of the questions.
    n_bins, seed : int

    Returns
    -------
    DataFrame
        ``layer``, ``recalibration``, ``metric``, ``value``, ``ci_low``, ``ci_high``, ``null_high``
        (of ECE, the 95th percentile of a calibrated model's). Metrics:
        ``temperature``; ``nll``, of those that give logits; ``brier`` over options;
        ``confidence_brier``, (confidence - correctness)^2; ``ece``; and as ``*_gain`` by how much
        each mean score falls, paired. ``scale_share`` is the part of a layer's excess of NLL over
        the last layer that temperatures take away. ``knowledge_step`` is by how much NLL falls from
        the layer below, both at their temperatures, ``scale_step`` by how much what a temperature
        gains falls; their intervals hold for all layers at once (Bonferroni). Under recalibration
        ``none``, ``vocabulary_*`` reads confidence as the probability of the letter among all
        tokens; the rest are those of :mod:`layercal.metrics.selective`.
    """
    uniform = resampling.null_uniform(read.cluster, len(weights), seed)
    draws = _Draws(read.cluster, weights, uniform, n_bins)
    rows = list(steps(read, scaled[TEMPERATURE]))
    for layer in range(len(read.logits)):
        rows += [{"layer": layer, **row} for row in _of_layer(read, scaled, layer, fold, draws)]
    return pd.DataFrame(rows)


def _of_layer(
    read: Readings,
    scaled: dict[str, np.ndarray],
    layer: int,
    fold: np.ndarray,
    draws: _Draws,
) -> Iterator[dict]:
    before = read.layer(layer)
    value = temperature_interval(before.logits, before.answer, before.cluster)
    yield _row(TEMPERATURE, "temperature", *map(float, value))
    old = _scores(before.logits, before.answer)
    yield from _measured(NONE, old, draws)
    for name, logits in scaled.items():
        new = _scores(logits[layer], before.answer)
        yield from _measured(name, new, draws)
        yield from _gains(name, old, new, before.cluster)
    for name, fit in MAPS.items():
        mapped = cross_mapped(fit, before.confidence, before.correct, fold)
        new = {"confidence": mapped, "correct": before.correct}
        new["confidence_brier"] = (mapped - before.correct) ** 2
        new["brier"] = spread_brier(before, mapped)
        yield from _measured(name, new, draws)
        yield from _gains(name, old, new, before.cluster)
    if layer < len(read.logits) - 1:
        share = scale_share(read, scaled[TEMPERATURE], layer)
        yield _row(TEMPERATURE, "scale_share", *share)
    yield from _described(before, draws)


def _row(
    recalibration: str,
    metric: str,
    value: float,
    low: float = np.nan,
    high: float = np.nan,
    null_high: float = np.nan,
) -> dict:
    return {
        "recalibration": recalibration,
        "metric": metric,
        "value": float(value),
        "ci_low": float(low),
        "ci_high": float(high),
        "null_high": float(null_high),
    }


def _scores(logits: np.ndarray, answer: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of each question, and what its ECE is taken from; (n,) each."""
    confidence, correct = softmax(logits.astype(float), -1).max(-1), logits.argmax(-1) == answer
    brier = (confidence - correct) ** 2
    losses = paired.losses(logits, answer)
    return losses | {"confidence_brier": brier, "confidence": confidence, "correct": correct}


def _measured(name: str, scores: dict, draws: _Draws) -> Iterator[dict]:
    for metric in sorted(scores.keys() - {"confidence", "correct"}):
        change = paired.mean_change(scores[metric], draws.cluster)
        yield _row(name, metric, change.value, *change.interval())
    pair = scores["confidence"], scores["correct"].astype(float)
    if not np.isnan(pair[0]).any():
        yield _error(name, "ece", *pair, draws)


def _error(
    name: str, metric: str, confidence: np.ndarray, correct: np.ndarray, draws: _Draws
) -> dict:
    """ECE with its interval and its null floor."""
    sample = registry.ece_sample(confidence, correct, draws.weights, draws.n_bins)
    floor = np.quantile(sample.top_label_null(confidence, draws.uniform), 0.95)
    return _row(name, metric, sample.estimate, *resampling.error_interval(sample), floor)


def _gains(name: str, old: dict, new: dict, cluster: np.ndarray) -> Iterator[dict]:
    for metric in sorted(new.keys() - {"confidence", "correct"}):
        change = paired.mean_change(old[metric] - new[metric], cluster)
        yield _row(name, f"{metric}_gain", change.value, *change.interval())


def scale_share(read: Readings, tempered: np.ndarray, layer: int) -> tuple[float, float, float]:
    """Share of a layer's excess of NLL over the last that temperatures take away, its interval.

    Parameters
    ----------
    read : Readings
        ``logits`` of shape (layers, n, k).
    tempered : array, shape (layers, n, k)
        From :func:`cross_tempered`.
    layer : int

    Returns
    -------
    value, low, high : float
        As of :func:`layercal.metrics.paired.share`.
    """
    old, new = (
        paired.losses(logits[[layer, -1]], read.answer)["nll"] for logits in (read.logits, tempered)
    )
    gain, excess = old - new, old[0] - old[1]
    return paired.share(gain[0] - gain[1], excess, read.cluster)


def steps(read: Readings, tempered: np.ndarray) -> Iterator[dict]:
    """By how much NLL falls from each layer to the next, by knowledge and by scale.

    Parameters
    ----------
    read : Readings
        ``logits`` of shape (layers, n, k).
    tempered : array, shape (layers, n, k)
        From :func:`cross_tempered`.

    Yields
    ------
    dict
        Rows as of :func:`table`; intervals hold for all layers at once (Bonferroni).
    """
    for metric, falls in nll_falls(read, tempered).items():
        level = 1 - LEVEL / max(1, len(falls))
        for layer, fall in enumerate(falls, start=1):
            change = paired.mean_change(fall, read.cluster)
            ends = change.interval(level)
            yield {"layer": layer, **_row(TEMPERATURE, metric, change.value, *ends)}


def nll_falls(read: Readings, tempered: np.ndarray) -> dict[str, np.ndarray]:
    """By how much NLL of each question falls from each layer to the next.

    Parameters as of :func:`steps`.

    Returns
    -------
    dict of array, shape (layers - 1, n)
        By knowledge, both layers at their temperatures, and by scale, what a temperature gains.
    """
    old, new = (paired.losses(logits, read.answer)["nll"] for logits in (read.logits, tempered))
    return {name: nll[:-1] - nll[1:] for name, nll in ((KNOWLEDGE, new), (SCALE, old - new))}


def _described(before: Readings, draws: _Draws) -> Iterator[dict]:
    pair = before.confidence, before.correct.astype(float)
    for metric, value in (selective.helm(*pair) | selective.described(*pair)).items():
        yield _row(NONE, metric, value)
    said = before.confidence * before.extra["option_mass"]
    yield _error(NONE, "vocabulary_ece", said, pair[1], draws)
    for metric, value in (("signed_gap", pair[0]), ("vocabulary_signed_gap", said)):
        gap = paired.mean_change(value - pair[1], draws.cluster)
        yield _row(NONE, metric, gap.value, *gap.interval())
