"""Bootstrap over questions, null floor, intervals, and families of claims.

A binned error is a norm of the vector of its bin gaps: ECE their weighted sum of absolute values,
MCE their maximum. Estimated from a finite sample it is biased upward, the more the smaller the true
error is, so neither the percentile nor the basic bootstrap interval covers. The intervals here
invert a test instead (Carpenter 1999, doi:10.1111/1467-9868.00169): a true error is inside if the
observed one is not extreme among resamples whose gaps were scaled to that true error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

# multiples of the observed gaps that the inverted tests try
SCALES = np.concatenate([np.linspace(0, 1.6, 17), [2.0, 3.0, 5.0]])

Statistic = Callable[[np.ndarray], np.ndarray]


def resample_weights(n: int, draws: int, seed: int) -> np.ndarray:
    """Bootstrap over questions: how often each question occurs in each resample.

    One matrix serves every layer and setting, which makes their differences paired.

    Parameters
    ----------
    n : int
        Questions.
    draws : int
        Resamples.
    seed : int

    Returns
    -------
    array of float32, shape (draws, n)
        Rows sum to n.
    """
    rows = np.random.default_rng(seed).integers(0, n, (draws, n), dtype=np.int32)
    counts = np.empty((draws, n), np.float32)
    for draw, row in enumerate(rows):
        counts[draw] = np.bincount(row, minlength=n)
    return counts


def cluster_weights(cluster: np.ndarray, draws: int, seed: int) -> np.ndarray:
    """Bootstrap over clusters: rows that belong together are drawn together.

    Parameters
    ----------
    cluster : array, shape (n,)
        Equal where rows belong together, as the translations of a question do.
    draws, seed : int

    Returns
    -------
    array of float32, shape (draws, n)
        As :func:`resample_weights`, which this is if no two rows share a cluster.
    """
    names, index = np.unique(cluster, return_inverse=True)
    weights = resample_weights(len(names), draws, seed)[:, index]
    # resamples of clusters of different sizes differ in their number of rows
    return weights * (len(cluster) / weights.sum(-1, keepdims=True))


class GapSample:
    """The bin gaps of one reading: observed, resampled, and those of a calibrated model.

    Parameters
    ----------
    blocks : sequence of (columns, forecast, outcome)
        ``columns`` (n, b): how much each question counts in each bin, so that
        ``(outcome - forecast) @ columns`` are the gaps; ``forecast`` and ``outcome`` (n,). One
        block for errors of the top label, one an option for class-wise ones.
    weights : array, shape (draws, n)
        From :func:`resample_weights`. Readings that share it are paired.
    statistic : function (..., bins) -> (...)
        The error that gaps amount to.
    size : function (..., bins) -> (...)
        The error that gaps would amount to if they were known exactly; ``statistic`` unless that
        one takes a bias out.
    ratio : bool
        Whether columns divide by bin counts, which then are resampled too (to first order).
    """

    def __init__(
        self,
        blocks: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
        weights: np.ndarray,
        statistic: Statistic,
        size: Statistic | None = None,
        ratio: bool = False,
    ):
        self.blocks, self.weights = blocks, weights
        self.statistic, self.size = statistic, size or statistic
        gaps, noise = [], []
        for columns, forecast, outcome in blocks:
            residual = (outcome - forecast).astype(np.float32)
            gap = residual @ columns
            spread = residual[:, None] - gap if ratio else residual[:, None]
            gaps.append(gap)
            noise.append(weights @ (spread * columns) - (0 if ratio else gap))
        self.gap = np.concatenate(gaps).astype(float)
        self.noise = np.concatenate(noise, -1)
        self.estimate = float(statistic(self.gap))
        self.true = SCALES * float(self.size(self.gap))

    def errors(self) -> np.ndarray:
        """Resampled errors if the true one were ``self.true``; (scales, draws)."""
        scaled = SCALES.astype(np.float32)[:, None, None] * self.gap.astype(np.float32)
        return self.statistic(self.noise + scaled)

    def null(self, outcomes: Sequence[np.ndarray] | None) -> np.ndarray:
        """Errors of a perfectly calibrated model with these forecasts (the null floor); (draws,).

        Parameters
        ----------
        outcomes : sequence of array, shape (draws, n), or None
            Outcomes drawn from the forecasts of each block (consistency resampling; Broecker &
            Smith 2007, with the forecasts held fixed), which takes rows as independent. None for
            rows in clusters: how far they are right together shows in their resamples alone, which
            with all true gaps at 0 are the floor.
        """
        if outcomes is None:
            return self.statistic(self.noise)
        gaps = [
            drawn @ columns - forecast.astype(np.float32) @ columns
            for drawn, (columns, forecast, _) in zip(outcomes, self.blocks, strict=True)
        ]
        return self.statistic(np.concatenate(gaps, -1))

    def top_label_null(self, confidence: np.ndarray, uniform: np.ndarray | None) -> np.ndarray:
        """:meth:`null` of one block, right as often as its confidence (n,) says; (draws,).

        ``uniform`` is that of :func:`null_uniform`.
        """
        if uniform is None:
            return self.null(None)
        return self.null([(uniform < confidence).astype(np.float32)])


def clustered(cluster: np.ndarray) -> bool:
    """Whether any two rows belong together."""
    return len(np.unique(cluster)) < len(cluster)


def null_uniform(cluster: np.ndarray, draws: int, seed: int) -> np.ndarray | None:
    """What outcomes of calibrated models are drawn from; (draws, n) float32, within [0, 1).

    None for rows in clusters, whose floor is that of their resamples (:meth:`GapSample.null`).
    """
    if clustered(cluster):
        return None
    return np.random.default_rng(seed).random((draws, len(cluster)), np.float32)


def draw_outcomes(
    probability: np.ndarray, uniform: np.ndarray
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw answers from a model's own probabilities.

    Parameters
    ----------
    probability : array, shape (n, k)
        0 where a question has no such option.
    uniform : array, shape (draws, n)
        Within [0, 1); sharing it pairs readings.

    Returns
    -------
    correct : array of float32, shape (draws, n)
        Whether the predicted option is the answer drawn: Bernoulli(confidence).
    by_option : list of k arrays of float32, shape (draws, n)
        Whether each option is the answer drawn.
    """
    confidence = probability.max(-1).astype(np.float32)
    predicted = probability.argmax(-1)
    # the predicted option takes the lowest part of [0, 1), the others follow in order
    rest = np.where(np.arange(probability.shape[-1]) == predicted[:, None], 0, probability)
    upper = (confidence[:, None] + rest.cumsum(-1)).astype(np.float32)
    lower = np.concatenate([confidence[:, None], upper[:, :-1]], -1)
    rows, options = np.arange(len(rest)), probability.shape[-1]
    # what rounding leaves at the top belongs to the last of the others that can be the answer
    upper[rows, options - 1 - (rest[:, ::-1] > 0).argmax(-1)] = np.inf
    lower[rows, predicted], upper[rows, predicted] = 0, confidence
    by_option = [
        ((uniform >= lower[:, option]) & (uniform < upper[:, option])).astype(np.float32)
        for option in range(options)
    ]
    return (uniform < confidence).astype(np.float32), by_option


def interval(
    estimate: np.ndarray | float, resampled: np.ndarray, level: float = 0.95
) -> tuple[np.ndarray, np.ndarray]:
    """Basic (reverse percentile) bootstrap interval (Davison & Hinkley 1997, eq. 5.6).

    For means and other statistics without bias; for binned errors see :func:`error_interval`.

    Parameters
    ----------
    estimate : array, shape (...)
    resampled : array, shape (..., draws)
    level : float

    Returns
    -------
    low, high : array, shape (...)
    """
    tail = (1 - level) / 2
    lower, upper = np.quantile(resampled, [tail, 1 - tail], axis=-1)
    return 2 * estimate - upper, 2 * estimate - lower


def error_interval(sample: GapSample, level: float = 0.95) -> tuple[float, float]:
    """Interval of a binned error by test inversion.

    Parameters
    ----------
    sample : GapSample
    level : float

    Returns
    -------
    low, high : float
        Of the true error; ``low`` is 0 where the observed error is no larger than chance makes it.
    """
    tail = (1 - level) / 2
    lower, upper = np.quantile(sample.errors(), [tail, 1 - tail], axis=-1)
    if sample.true[-1] == 0:
        return 0.0, float(upper[0])
    ends = [
        np.interp(sample.estimate, np.maximum.accumulate(bound), sample.true)
        for bound in (upper, lower)
    ]
    return float(ends[0]), float(ends[1])


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjust p-values for a family of claims (Holm 1979).

    Parameters
    ----------
    p_values : sequence of float

    Returns
    -------
    array, shape (claims,)
        A claim stands at level a if its adjusted value is at most a; the chance that any claim
        stands wrongly is then at most a.
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p)
    stepped = p[order] * np.arange(len(p), 0, -1)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(stepped), 1)
    return adjusted


def equivalent(low: float, high: float, margin: float) -> bool:
    """Equivalence test: whether an interval of a change lies inside plus or minus the margin.

    An interval that holds 0 but is wider than the margin does not show that nothing changed.
    """
    return bool(low >= -margin and high <= margin)
