"""Paired means: differences of proper scores question by question, and shares of a gain.

NLL and Brier are means over questions, so that a difference of two readings is the mean of paired
differences, for which Student's interval holds; questions that belong together count once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax
from scipy.stats import t as student


def losses(logits: np.ndarray, answer: np.ndarray) -> dict[str, np.ndarray]:
    """Proper scores of each question, whose means are NLL and Brier.

    Parameters
    ----------
    logits : array, shape (..., n, n_options)
        -inf where a question has no such option.
    answer : array of int, shape (n,)

    Returns
    -------
    dict of array, shape (..., n)
        ``nll`` in nats; ``brier`` over all options (Brier 1950), within [0, 2].
    """
    log_p = log_softmax(logits.astype(float), -1)
    of_answer = np.take_along_axis(
        log_p, np.broadcast_to(np.asarray(answer)[..., None], (*log_p.shape[:-1], 1)), -1
    )[..., 0]
    squares = (np.exp(log_p) ** 2).sum(-1)
    return {"nll": -of_answer, "brier": squares - 2 * np.exp(of_answer) + 1}


@dataclass(frozen=True)
class MeanChange:
    """Mean of paired differences.

    Attributes
    ----------
    value : float
    error : float
        Standard error.
    freedom : int
        Degrees of freedom: clusters of questions less one.
    """

    value: float
    error: float
    freedom: int

    def interval(self, level: float = 0.95) -> tuple[float, float]:
        """Student's interval; symmetric about the value."""
        reach = self.error * float(student.ppf((1 + level) / 2, self.freedom))
        return self.value - reach, self.value + reach

    @property
    def p(self) -> float:
        """Two-sided p-value of no change: below 1 - level if and only if 0 lies outside."""
        if self.error == 0:
            return float(self.value == 0)
        return float(2 * student.sf(abs(self.value) / self.error, self.freedom))


def mean_change(difference: np.ndarray, cluster: np.ndarray) -> MeanChange:
    """Mean of paired differences with its error, clusters of rows counted as one.

    Parameters
    ----------
    difference : array, shape (n,)
    cluster : array of int, shape (n,)
        Equal where rows belong together.

    Raises
    ------
    ValueError
        If there are fewer than two clusters.
    """
    _, index = np.unique(cluster, return_inverse=True)
    groups = int(index.max()) + 1
    if groups < 2:
        raise ValueError(f"a standard error needs two clusters of questions, got {groups}")
    value = float(np.mean(difference))
    # sums of clusters are independent, whatever their sizes
    residual = np.bincount(index, difference - value)
    error = np.sqrt(groups / (groups - 1) * (residual**2).sum()) / len(index)
    return MeanChange(value, float(error), groups - 1)


def share(part: np.ndarray, whole: np.ndarray, cluster: np.ndarray, level: float = 0.95) -> tuple:
    """Share of a mean gain that another mean makes, with Fieller's interval (1954).

    Parameters
    ----------
    part, whole : array, shape (n,)
        Paired, by question.
    cluster : array of int, shape (n,)
    level : float

    Returns
    -------
    value, low, high : float
        The interval holds the shares s at which the mean of ``part - s whole`` does not differ
        from 0; it has no ends, and they are infinite, where ``whole`` does not differ from 0.
    """
    x, y = (mean_change(change, cluster) for change in (part, whole))
    both = mean_change(part + whole, cluster).error ** 2
    covariance = (both - x.error**2 - y.error**2) / 2
    reach = float(student.ppf((1 + level) / 2, y.freedom)) ** 2
    a, b, c = (
        y.value**2 - reach * y.error**2,
        x.value * y.value - reach * covariance,
        x.value**2 - reach * x.error**2,
    )
    if a <= 0:
        return x.value / y.value if y.value else np.nan, -np.inf, np.inf
    spread = np.sqrt(max(b**2 - a * c, 0.0))
    return x.value / y.value, (b - spread) / a, (b + spread) / a
