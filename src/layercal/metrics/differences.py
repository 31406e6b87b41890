"""Differences of binned errors of paired readings, by test inversion over all that explains them.

What a difference of two errors does by chance depends on true gaps that nobody knows: with one
reading over- and the other underconfident, an accuracy that came out high moves both errors, in
opposite ways. So every difference is tested at true gaps that explain the data: the observed ones,
shrunk half the way to where their errors, with noise, would be those observed, then moved along the
likeliest noise until their errors differ by what is tested, with gaps whose sign is not certain as
they are, all over- or all underconfident. Of these nine kinds counts the one that explains the
level of the errors best, and of all differences on the far side of the tested one the largest p
(Berger & Boos 1994, doi:10.2307/2290928, have the largest over all nuisances; over kinds that
explain the data nearly as well it cost up to a quarter of the power here and cured nothing).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.stats import norm

from layercal.metrics.resampling import SCALES, GapSample

# differences below this, half a unit of the third decimal, count as none
RESOLUTION = 0.0005
# standard errors within which the sign of a gap is not certain
UNCERTAIN = 2.0
STEPS = 14  # differences tried on either side of the observed one
COUNTED = 10  # resamples below which a tail is taken from a normal law


@dataclass
class Difference:
    """Difference of paired errors: estimate, interval, two-sided p-value of no difference.

    ``p`` is at most 1 - level if and only if 0 lies outside the interval.
    """

    value: float
    low: float
    high: float
    p: float


def error_difference(
    a: GapSample, b: GapSample, picked_from: int = 1, level: float = 0.95
) -> Difference:
    """Error of reading a minus that of reading b.

    The interval reaches no further than the difference of two readings can: mean absolute
    difference of confidence, plus the share of changed answers, plus what changes its bin.

    Parameters
    ----------
    a, b : GapSample
        Paired: the same resamples of the same questions.
    picked_from : int
        Readings among which a was picked because its error is the largest (Bonferroni).
    level : float

    Returns
    -------
    Difference
    """
    value = a.estimate - b.estimate
    farthest = max(_farthest(a, b), abs(value))
    if farthest <= RESOLUTION:
        return Difference(value, -farthest, farthest, 1.0)
    tested = contrast([a, b], [1, -1], picked_from, level)
    low, high = max(tested.low, -farthest), min(tested.high, farthest)
    return Difference(tested.value, min(low, farthest), max(high, -farthest), tested.p)


def contrast(
    samples: Sequence[GapSample],
    coefficients: Sequence[float],
    picked_from: int = 1,
    level: float = 0.95,
) -> Difference:
    """Weighted sum of the errors of paired readings, the weights summing to 0.

    Parameters
    ----------
    samples : sequence of GapSample
        Of the same resamples of the same questions.
    coefficients : sequence of float
        As many.
    picked_from : int
        Contrasts among which this one was picked.
    level : float

    Returns
    -------
    Difference
    """
    tests = _Tests(samples, np.asarray(coefficients, float))
    tail = (1 - level) / 2 / picked_from
    farthest = np.abs(tests.coefficients).sum() / 2  # errors lie within [0, 1]
    low = max(_largest(tests.above, tests.grid, tail) - RESOLUTION, -farthest)
    high = min(-_largest(tests.below[::-1], -tests.grid[::-1], tail) + RESOLUTION, farthest)
    above = np.interp(RESOLUTION, tests.grid, tests.above)
    below = np.interp(-RESOLUTION, tests.grid, tests.below)
    return Difference(tests.value, low, high, min(1.0, 2 * picked_from * float(min(above, below))))


def _farthest(a: GapSample, b: GapSample) -> float:
    """Upper confidence limit of how far two errors can lie apart, question by question."""
    apart = sum(
        np.abs(x[0] * (x[2] - x[1])[:, None] - y[0] * (y[2] - y[1])[:, None]).sum(-1)
        for x, y in zip(a.blocks, b.blocks, strict=True)
    )
    return float(apart.sum() + 2 * (a.weights @ apart.astype(np.float32)).std())


def _largest(tails: np.ndarray, grid: np.ndarray, tail: float) -> float:
    """Largest point of the grid, or between two, up to which rising tails stay within one."""
    after = int(np.searchsorted(tails, tail, side="right"))
    if after == 0:
        return -np.inf
    if after == len(grid):
        return float(grid[-1])
    part = (tail - tails[after - 1]) / (tails[after] - tails[after - 1])
    return float(grid[after - 1] + part * (grid[after] - grid[after - 1]))


class _Tests:
    """One-sided p-values of a contrast over a grid of true values.

    Attributes
    ----------
    value : float
        Observed.
    grid : array, shape (points,)
    below, above : array, shape (points,)
        Chance of a contrast at most, and at least, the observed one, the largest of this point and
        those beyond it; the one falls and the other rises over the grid.
    """

    def __init__(self, samples: Sequence[GapSample], coefficients: np.ndarray):
        self.samples, self.coefficients = samples, coefficients
        self.ends = np.cumsum([len(sample.gap) for sample in samples])[:-1]
        self.gap = np.concatenate([sample.gap for sample in samples])
        self.noise = np.concatenate([sample.noise for sample in samples], -1).astype(np.float32)
        observed = np.array([sample.estimate for sample in samples])
        self.value = float(coefficients @ observed)
        self.level = float(np.abs(coefficients) @ observed)
        drawn, level = self.drawn(self.gap)
        # far enough for gaps of any sign, and close together where the paired difference is sure
        reach = 5 * level.std() + 2 * abs(drawn.mean() - self.value) + RESOLUTION
        steps = np.sinh(np.linspace(-3, 3, 2 * STEPS + 1)) / np.sinh(3)
        self.grid = self.value + reach * steps
        self.near = np.gradient(self.grid) / 4
        tails = np.array(
            [self.tails(*point) for point in zip(self.grid, self.near, self.truths(), strict=True)]
        )
        self.below = np.maximum.accumulate(tails[::-1, 0])[::-1]
        self.above = np.maximum.accumulate(tails[:, 1])

    def drawn(self, gap: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Resampled contrasts, and sums of errors, if gaps (..., k) were true; (..., draws)."""
        drawn = self.noise + gap[..., None, :].astype(np.float32)
        errors = [
            sample.statistic(part)
            for sample, part in zip(self.samples, np.split(drawn, self.ends, -1), strict=True)
        ]
        return tuple(
            sum(weight * error for weight, error in zip(weights, errors, strict=True))
            for weights in (self.coefficients, np.abs(self.coefficients))
        )

    def true(self, gap: np.ndarray) -> np.ndarray:
        """Contrast of gaps (..., k) that are known exactly; (...)."""
        parts = zip(self.samples, np.split(gap, self.ends, -1), self.coefficients, strict=True)
        return sum(weight * one.size(part) for one, part, weight in parts)

    def truths(self) -> np.ndarray:
        """Gaps whose contrast is that of each point of the grid; (points, kinds, k)."""
        covariance = self.noise.T.astype(float) @ self.noise / len(self.noise)
        covariance += np.eye(len(covariance)) * (1e-9 * np.trace(covariance) + 1e-18)
        count = len(self.samples)
        # signs of the readings one by one only where there are few of them
        signs = product((0, -1, 1), repeat=2) if count == 2 else ((s,) * count for s in (0, -1, 1))
        sizes = [len(sample.gap) for sample in self.samples]
        push = np.array([np.repeat(sign, sizes) for sign in signs])
        push = UNCERTAIN * np.sqrt(np.diag(covariance)) * push
        start = self.gap * np.repeat([_shrinkage(sample) for sample in self.samples], sizes)
        start, at = np.tile(start, (len(push), 1)), self.true(start)
        rising = self.walk(start, push, np.maximum(self.grid, at), covariance)
        falling = self.walk(start, push, np.minimum(self.grid[::-1], at), covariance)[::-1]
        return np.where((self.grid >= at)[:, None, None], rising, falling)

    def walk(
        self, gap: np.ndarray, push: np.ndarray, goals: np.ndarray, covariance: np.ndarray
    ) -> np.ndarray:
        """Move gaps (kinds, k) to each goal in turn by the noise that is likeliest."""
        gaps = []
        for goal in goals:
            for _ in range(4):  # the contrast is linear but where a gap changes its sign
                slope = self.slope(gap + push)
                step = slope @ covariance
                gap = gap + step * ((goal - self.true(gap)) / (step * slope).sum(-1))[:, None]
            gaps.append(gap)
        return np.array(gaps)

    def slope(self, gap: np.ndarray, step: float = 1e-7) -> np.ndarray:
        """Gradient of the contrast at gaps (kinds, k); the same shape."""
        moved = self.true(gap[:, None] + step * np.eye(gap.shape[-1]))
        return (moved - self.true(gap)[:, None]) / step

    def tails(self, goal: float, near: float, gap: np.ndarray) -> tuple[float, float]:
        """Tails at the one of the gaps (kinds, k) that explains the data best."""
        drawn, level = self.drawn(gap)
        mean, spread = drawn.mean(-1), drawn.std(-1) + 1e-12
        # how far off the level of the errors is, beyond what their difference says of it
        rest, deviation = level - level.mean(-1, keepdims=True), drawn - mean[:, None]
        slope = (rest * deviation).mean(-1) / spread**2
        noise = (rest - slope[:, None] * deviation).std(-1) + 1e-12
        off = (self.level - level.mean(-1) - slope * (self.value - mean)) / noise
        reached = np.abs(self.true(gap) - goal) <= near
        best = np.argmin(np.where(reached, np.abs(off), np.inf))
        drawn, away = drawn[best], (self.value - mean[best]) / spread[best]
        below = _tail((drawn <= self.value + 1e-9).mean(), away, len(drawn))
        above = _tail((drawn >= self.value - 1e-9).mean(), -away, len(drawn))
        return below, above


def _tail(share: float, away: float, draws: int) -> float:
    """Chance of a tail: counted, or, too rare for that, as in a normal law."""
    counted = COUNTED / draws
    return float(share if share >= counted else min(norm.cdf(away), counted))


def _shrinkage(sample: GapSample) -> float:
    """Half the way from gaps as observed to those whose error, with noise, is the one observed."""
    expected = np.maximum.accumulate(sample.errors().mean(-1))
    return (1 + float(np.interp(sample.estimate, expected, SCALES))) / 2
