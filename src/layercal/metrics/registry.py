"""Binned errors of calibration: one entry each, which says all that is done with it.

How an error is resampled, in how many bins it is given, whether an interval of it is honest, what
its null floor is drawn from, and whether the dose-response shows it. A new error is a function that
gives its gaps, and its entry in ``BINNED``; every table then has it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from layercal.metrics import calibration
from layercal.metrics.calibration import bin_index, bin_table, rms_gap, smooth_bandwidth
from layercal.metrics.resampling import GapSample, error_interval

if TYPE_CHECKING:
    from layercal.metrics.readings import Readings

# in which numbers of bins an error is given: each that is asked for, the first of them, or none
EACH, PRIMARY, UNBINNED = "each", "primary", "unbinned"


def sum_of_gaps(gap: np.ndarray) -> np.ndarray:
    """ECE of bin gaps that are already weighted by the bins' shares."""
    return np.abs(gap) @ np.ones(gap.shape[-1], gap.dtype)  # faster than a sum over few bins


def largest_gap(gap: np.ndarray) -> np.ndarray:
    """MCE of bin gaps."""
    return np.abs(gap).max(-1)


def ece_sample(
    confidence: np.ndarray,
    correct: np.ndarray,
    weights: np.ndarray,
    n_bins: int = 10,
    scheme: str = "width",
) -> GapSample:
    """ECE of one reading; equal-mass edges stay those of the sample.

    Parameters
    ----------
    confidence, correct : array, shape (n,)
    weights : array, shape (draws, n)
        From :func:`resample_weights`.
    n_bins : int
    scheme : {"width", "mass"}
    """
    columns = _member(confidence, n_bins, scheme) / np.float32(len(confidence))
    return GapSample([(columns, confidence, correct)], weights, sum_of_gaps)


def mce_sample(
    confidence: np.ndarray,
    correct: np.ndarray,
    weights: np.ndarray,
    n_bins: int = 10,
    min_count: int = 1,
) -> GapSample | None:
    """MCE of one reading over the bins with at least ``min_count`` samples.

    Parameters
    ----------
    confidence, correct : array, shape (n,)
    weights : array, shape (draws, n)
    n_bins, min_count : int

    Returns
    -------
    GapSample or None
        None if no bin has so many samples.
    """
    member = _member(confidence, n_bins)
    count = member.sum(0)
    if not (count >= min_count).any():
        return None
    columns = member * (count >= min_count) / np.maximum(count, 1)
    return GapSample([(columns, confidence, correct)], weights, largest_gap, ratio=True)


def debiased_sample(
    confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray, n_bins: int = 10
) -> GapSample:
    """Debiased L2 error of one reading, equal-mass bins; see ``calibration.debiased_ece``."""
    table = bin_table(confidence, correct, n_bins, "mass")
    columns = _member(confidence, n_bins, "mass") / np.maximum(table.count, 1).astype(np.float32)
    return GapSample(
        [(columns, confidence, correct)],
        weights,
        lambda gap: rms_gap(gap, table),
        lambda gap: np.sqrt((gap**2 * table.share).sum(-1)),
        ratio=True,
    )


def smooth_sample(
    confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray, points: int = 65
) -> GapSample:
    """Smooth ECE of one reading; the bandwidth stays that of the sample.

    ``points`` evaluate the smoothed residuals, enough for the bandwidths that samples of up to
    some 10,000 questions ask for.
    """
    bandwidth = smooth_bandwidth(confidence, correct)
    at = np.linspace(0, 1, points, dtype=np.float32)
    centre = confidence.astype(np.float32)[:, None]
    columns = np.zeros((len(confidence), points), np.float32)
    for mirrored in (at, -at, 2 - at):
        columns += np.exp(-0.5 * ((centre - mirrored) / np.float32(bandwidth)) ** 2)
    area = np.full(points, 1 / (points - 1))
    area[[0, -1]] /= 2
    columns *= (area / (bandwidth * np.sqrt(2 * np.pi) * len(confidence))).astype(np.float32)
    return GapSample([(columns, confidence, correct)], weights, sum_of_gaps)


def classwise_sample(
    probability: np.ndarray,
    answer: np.ndarray,
    weights: np.ndarray,
    n_bins: int = 10,
    n_options: np.ndarray | None = None,
) -> GapSample:
    """Class-wise ECE of one reading; see ``calibration.classwise_ece``.

    Parameters
    ----------
    probability : array, shape (n, k)
    answer : array of int, shape (n,)
    weights : array, shape (draws, n)
    n_bins : int
    n_options : array of int, shape (n,), optional
    """
    options = probability.shape[-1] if n_options is None else np.mean(n_options)
    share = np.float32(options * len(answer))
    blocks = [
        (_member(np.minimum(column, 1), n_bins) / share, column, (answer == option).astype(float))
        for option, column in enumerate(probability.T)
    ]
    return GapSample(blocks, weights, sum_of_gaps)


def _member(confidence: np.ndarray, n_bins: int, scheme: str = "width") -> np.ndarray:
    """Whether each sample lies in each bin; (n, n_bins)."""
    member = np.zeros((len(confidence), n_bins), np.float32)
    member[np.arange(len(confidence)), bin_index(confidence, n_bins, scheme)] = 1
    return member


@dataclass(frozen=True, kw_only=True)
class Binned:
    """A binned error of one reading.

    Attributes
    ----------
    sample : function (confidence, correct, weights, n_bins) -> GapSample or None
        Without the last if unbinned; None where there is no such error. If ``by_option``, of
        (probability, answer, weights, n_bins, n_options).
    estimate : function (confidence, correct, n_bins) -> float, optional
        The error alone, from :mod:`layercal.metrics.calibration`; that of the sample if left out.
    bins : {"each", "primary", "unbinned"}
    equal_mass : bool
        Whether bins hold equally many questions, of which there must be as many as bins.
    filtered : bool
        Whether it is given for several ``min_count`` of a bin.
    bounded : bool
        Whether it has an interval. A bin of one question is as good as known to its own resamples:
        where such bins decide, no interval is honest.
    by_option : bool
        Whether it is one of all options, and not of the predicted one alone.
    dose : bool
        Whether the dose-response shows it.
    min_count : int
        Questions of a bin from which on it counts.
    """

    sample: Callable[..., GapSample | None]
    estimate: Callable[..., np.ndarray] | None = None
    bins: str = PRIMARY
    equal_mass: bool = False
    filtered: bool = False
    bounded: bool = True
    by_option: bool = False
    dose: bool = False
    min_count: int = 1

    def least(self, count: int) -> Binned:
        """The same over bins of at least so many questions."""
        sample = partial(self.sample, min_count=count)
        return replace(self, sample=sample, bounded=count > 1, min_count=count)

    def resampled(self, read: Readings, weights: np.ndarray, n_bins: int) -> GapSample | str:
        """The error of one reading, observed and resampled, or why there is none.

        Parameters
        ----------
        read : Readings
            Of one layer.
        weights : array, shape (draws, n)
        n_bins : int
        """
        if self.by_option:
            probability = np.exp(read.log_probability)
            sample = self.sample(probability, read.answer, weights, n_bins, read.n_options)
        elif self.equal_mass and len(read.answer) < n_bins:
            return f"{len(read.answer)} questions cannot fill {n_bins} bins of equal mass"
        else:
            correct = read.correct.astype(float)
            sample = self.sample(read.confidence, correct, weights, **self._bins(n_bins))
        return f"no bin holds {self.min_count} questions" if sample is None else sample

    def value(
        self, confidence: np.ndarray, correct: np.ndarray, weights: np.ndarray | None, n_bins: int
    ) -> tuple[float, float, float]:
        """The error of one reading with its interval, NaN where there is none.

        Parameters
        ----------
        confidence, correct : array, shape (n,)
        weights : array, shape (draws, n), or None
            None asks for no interval.
        n_bins : int

        Returns
        -------
        value, low, high : float
        """
        bins, with_interval = self._bins(n_bins), self.bounded and weights is not None
        value, ends = None, (np.nan, np.nan)
        if self.estimate:
            value = float(self.estimate(confidence, correct, **bins))
        if value is None or with_interval:
            drawn = np.empty((0, len(correct)), np.float32) if weights is None else weights
            sample = self.sample(confidence, correct.astype(float), drawn, **bins)
            if sample is None:
                return np.nan, *ends
            value = sample.estimate if value is None else value
            ends = error_interval(sample) if with_interval else ends
        return value, *ends

    def _bins(self, n_bins: int) -> dict[str, int]:
        return {} if self.bins == UNBINNED else {"n_bins": n_bins}


BINNED = {
    "ece": Binned(sample=ece_sample, estimate=calibration.ece, bins=EACH, dose=True),
    "mce": Binned(
        sample=mce_sample,
        estimate=calibration.mce,
        bins=EACH,
        filtered=True,
        bounded=False,
        dose=True,
    ),
    "ece_mass": Binned(sample=partial(ece_sample, scheme="mass"), equal_mass=True),
    "debiased_ece": Binned(sample=debiased_sample, equal_mass=True),
    "smooth_ece": Binned(sample=smooth_sample, bins=UNBINNED),
    "classwise_ece": Binned(sample=classwise_sample, by_option=True),
}


def listed(n_bins: Sequence[int], min_count: Sequence[int]) -> Iterator[tuple[str, int, Binned]]:
    """Every error as a table of metrics has it: name, number of bins (0 for none), entry.

    Parameters
    ----------
    n_bins, min_count : sequence of int
        The first number of bins is the primary one.
    """
    for bins in n_bins:
        for name, entry in BINNED.items():
            if entry.bins == EACH and not entry.filtered:
                yield name, bins, entry
            elif entry.bins == EACH:
                for count in min_count:
                    label = name if count == 1 else f"{name}_min{count}"
                    yield label, bins, entry.least(count)
    for name, entry in BINNED.items():
        if entry.bins != EACH:
            yield name, n_bins[0] if entry.bins == PRIMARY else 0, entry
