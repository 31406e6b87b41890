"""Calibration metrics, vectorised over leading axes.

Arrays have shape (..., n): the last axis is the questions, the others may be layers or settings.
``confidence`` is the probability of the predicted option, ``correct`` whether it is the answer.
``docs/metrics.md`` has one formula a metric and says when to use which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.fft import dct, idct
from scipy.stats import rankdata

from layercal import InputError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

# points of the grid on which smooth ECE is computed; the bandwidth is never below its spacing
SMOOTH_POINTS = 1025


@dataclass
class BinTable:
    """Counts and means per confidence bin.

    Attributes
    ----------
    count : array, shape (..., n_bins)
        Samples per bin.
    confidence, accuracy : array, shape (..., n_bins)
        Their mean confidence and accuracy; NaN in empty bins.
    """

    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """Accuracy minus confidence of each bin, 0 where it is empty; (..., n_bins)."""
        return np.nan_to_num(self.accuracy - self.confidence)

    @property
    def share(self) -> np.ndarray:
        """Share of the samples in each bin; (..., n_bins)."""
        return self.count / self.count.sum(-1, keepdims=True)


def check_pairs(confidence: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return both as float arrays of one shape, or say what is wrong with them.

    Raises
    ------
    InputError
        If there are no samples, lengths differ, or values are NaN or out of range.
    """
    confidence, correct = np.asarray(confidence, float), np.asarray(correct, float)
    if confidence.ndim == 0 or correct.ndim == 0 or confidence.shape[-1] != correct.shape[-1]:
        raise InputError(
            f"confidence has shape {confidence.shape}, correct {correct.shape}; the last axis of "
            "both must be the same samples"
        )
    if confidence.shape[-1] == 0:
        raise InputError("no samples to compute a calibration metric from")
    if not ((confidence >= 0) & (confidence <= 1)).all():
        raise InputError("confidence must lie within [0, 1] and must not be NaN")
    if not ((correct == 0) | (correct == 1)).all():
        raise InputError("correct must hold 0 and 1 (or booleans) only")
    confidence, correct = np.broadcast_arrays(confidence, correct)
    return confidence, correct


def check_probabilities(probability: ArrayLike, answer: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities (..., n, k) and answers (n,), or say what is wrong with them.

    Raises
    ------
    InputError
        If there are no samples, lengths differ, a value is NaN or negative, a row does not sum to
        1, or an answer is none of the options.
    """
    probability, answer = np.asarray(probability, float), np.asarray(answer)
    if probability.ndim < 2 or probability.shape[-2:-1] != answer.shape[-1:]:
        raise InputError(
            f"probability has shape {probability.shape}, answer {answer.shape}; expected "
            "(..., samples, options) and (samples,)"
        )
    if answer.size == 0:
        raise InputError("no samples to compute a calibration metric from")
    if not (probability >= 0).all() or not np.allclose(probability.sum(-1), 1, atol=1e-5):
        raise InputError("each row of probability must be non-negative, not NaN, and sum to 1")
    if not np.isin(answer, np.arange(probability.shape[-1])).all():
        raise InputError(f"answer must be an option index, 0 to {probability.shape[-1] - 1}")
    return probability, answer.astype(int)


def bin_index(confidence: np.ndarray, n_bins: int, scheme: str = "width") -> np.ndarray:
    """Bin of each sample, 0 to n_bins - 1; exact edges belong to the bin below them.

    ``width``: edges b / n_bins. ``mass``: edges at the sample's own quantiles, so that bins hold
    equally many samples up to ties, which always stay together.

    Parameters
    ----------
    confidence : array, shape (..., n)
    n_bins : int
    scheme : {"width", "mass"}

    Returns
    -------
    array of int, shape (..., n)

    Raises
    ------
    InputError
        If the scheme is unknown, or there are fewer samples than equal-mass bins.
    """
    if scheme == "width":
        return np.searchsorted(np.arange(1, n_bins) / n_bins, confidence, side="left")
    if scheme != "mass":
        raise InputError(f"unknown binning scheme {scheme!r}; expected 'width' or 'mass'")
    n = confidence.shape[-1]
    if n < n_bins:
        raise InputError(f"{n} samples cannot fill {n_bins} bins of equal mass; use fewer bins")
    last = -(-np.arange(1, n_bins) * n // n_bins) - 1  # last sample of each bin but the top one
    edges = np.sort(confidence, -1)[..., last]
    return (confidence[..., None] > edges[..., None, :]).sum(-1)


def bin_table(
    confidence: ArrayLike, correct: ArrayLike, n_bins: int = 10, scheme: str = "width"
) -> BinTable:
    """Sort samples into confidence bins ``(lo, hi]``, the first closed at 0.

    Parameters
    ----------
    confidence : array_like, shape (..., n)
        Within [0, 1].
    correct : array_like, shape (..., n)
        0 or 1.
    n_bins : int
    scheme : {"width", "mass"}
        Equal width, or equally many samples (adaptive).

    Returns
    -------
    BinTable
        Arrays of shape (..., n_bins).

    Raises
    ------
    InputError
        If there are no samples, lengths differ, or values are NaN or out of range.
    """
    confidence, correct = check_pairs(confidence, correct)
    shape, n = confidence.shape[:-1], confidence.shape[-1]
    cells = int(np.prod(shape)) * n_bins
    row = np.repeat(np.arange(cells // n_bins), n) * n_bins
    flat = row + bin_index(confidence, n_bins, scheme).ravel()
    count, total, right = (
        np.bincount(flat, weights, cells).reshape(*shape, n_bins)
        for weights in (None, confidence.ravel(), correct.ravel())
    )
    filled = np.where(count > 0, count, np.nan)
    return BinTable(count, total / filled, right / filled)


def ece(
    confidence: ArrayLike, correct: ArrayLike, n_bins: int = 10, scheme: str = "width"
) -> np.ndarray:
    """Expected calibration error (Naeini et al. 2015; Guo et al. 2017).

    Sum over bins of n_b / n |accuracy_b - confidence_b|. With ``scheme="mass"`` it is the adaptive
    calibration error of the top label (Nixon et al. 2019).

    Parameters
    ----------
    confidence, correct : array_like, shape (..., n)
    n_bins : int
    scheme : {"width", "mass"}

    Returns
    -------
    array, shape (...)
        Within [0, 1]. Biased upward: compare with its null floor.

    Raises
    ------
    InputError
        As :func:`bin_table`.
    """
    table = bin_table(confidence, correct, n_bins, scheme)
    return (np.abs(table.gap) * table.share).sum(-1)


def mce(
    confidence: ArrayLike, correct: ArrayLike, n_bins: int = 10, min_count: int = 1
) -> np.ndarray:
    """Maximum calibration error over equal-width bins (Naeini et al. 2015).

    Parameters
    ----------
    confidence, correct : array_like, shape (..., n)
    n_bins : int
    min_count : int
        Bins with fewer samples are left out: a bin of one sample has a gap near 1 by chance.

    Returns
    -------
    array, shape (...)
        Within [0, 1]; NaN where no bin has ``min_count`` samples.

    Raises
    ------
    InputError
        As :func:`bin_table`.
    """
    table = bin_table(confidence, correct, n_bins)
    kept = table.count >= min_count
    worst = np.where(kept, np.abs(table.gap), 0).max(-1)
    return np.where(kept.any(-1), worst, np.nan)


def debiased_ece(
    confidence: ArrayLike, correct: ArrayLike, n_bins: int = 10, scheme: str = "mass"
) -> np.ndarray:
    """Debiased L2 calibration error (Kumar et al. 2019, section 5).

    Root of the sum over bins of n_b / n [(accuracy_b - confidence_b)^2 - accuracy_b (1 -
    accuracy_b) / (n_b - 1)]: each squared gap less its sampling variance. Bins of one sample count
    as 0, and so does a negative sum.

    Parameters
    ----------
    confidence, correct : array_like, shape (..., n)
    n_bins : int
    scheme : {"width", "mass"}

    Returns
    -------
    array, shape (...)
        Within [0, 1]. In root-mean-square units: not to be compared with ECE.

    Raises
    ------
    InputError
        As :func:`bin_table`.
    """
    table = bin_table(confidence, correct, n_bins, scheme)
    return rms_gap(table.gap, table)


def rms_gap(gap: np.ndarray, table: BinTable) -> np.ndarray:
    """Debiased root mean square of bin gaps, their sampling variance taken from a table."""
    variance = table.accuracy * (1 - table.accuracy) / np.maximum(table.count - 1, 1)
    squared = np.where(table.count > 1, gap**2 - np.nan_to_num(variance), 0)
    return np.sqrt(np.maximum((squared * table.share).sum(-1), 0))


def smooth_ece(confidence: ArrayLike, correct: ArrayLike) -> np.ndarray:
    """Smooth ECE (Blasiok & Nakkiran 2023): no bins, a kernel of a width that the data choose.

    The integral over [0, 1] of the absolute value of the residuals ``correct - confidence``,
    smoothed by a Gaussian reflected at 0 and 1. The bandwidth s solves ``smECE_s = s``.

    Parameters
    ----------
    confidence, correct : array_like, shape (..., n)

    Returns
    -------
    array, shape (...)
        Within [0, 1].

    Raises
    ------
    InputError
        As :func:`bin_table`.
    """
    confidence, correct = check_pairs(confidence, correct)
    spectrum = _residual_spectrum(confidence, correct - confidence)
    return _smoothed_error(spectrum, smooth_bandwidth(confidence, correct))


def smooth_bandwidth(confidence: ArrayLike, correct: ArrayLike) -> np.ndarray:
    """Bandwidth s at which the smoothed error equals s; (...), for :func:`smooth_ece`."""
    confidence, correct = check_pairs(confidence, correct)
    spectrum = _residual_spectrum(confidence, correct - confidence)
    # smECE_s falls with s, so smECE_s - s changes sign once
    low, high = np.zeros(spectrum.shape[:-1]), np.ones(spectrum.shape[:-1])
    for _ in range(20):
        middle = (low + high) / 2
        above = _smoothed_error(spectrum, middle) > middle
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return np.maximum(high, 1 / (SMOOTH_POINTS - 1))


def _residual_spectrum(confidence: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Cosine transform of the residuals' density on a grid, (..., SMOOTH_POINTS).

    In this basis the Gaussian reflected at both ends is a plain product.
    """
    shape, n, last = confidence.shape[:-1], confidence.shape[-1], SMOOTH_POINTS - 1
    position = confidence * last
    below = np.minimum(position.astype(int), last - 1)
    part = position - below
    rows = np.repeat(np.arange(int(np.prod(shape))), n) * SMOOTH_POINTS
    cells = int(np.prod(shape)) * SMOOTH_POINTS
    flat = rows + below.ravel()
    density = np.bincount(flat, ((1 - part) * residual).ravel(), cells)
    density += np.bincount(flat + 1, (part * residual).ravel(), cells)
    density = density.reshape(*shape, SMOOTH_POINTS) * last / n
    density[..., [0, -1]] *= 2  # the end cells are half as wide
    return dct(density, type=1, axis=-1)


def _smoothed_error(spectrum: np.ndarray, bandwidth: np.ndarray) -> np.ndarray:
    frequency = np.pi * np.arange(SMOOTH_POINTS)
    damped = spectrum * np.exp(-0.5 * (frequency * np.asarray(bandwidth)[..., None]) ** 2)
    height = np.abs(idct(damped, type=1, axis=-1))
    return (height.sum(-1) - (height[..., 0] + height[..., -1]) / 2) / (SMOOTH_POINTS - 1)


def classwise_ece(
    probability: ArrayLike, answer: ArrayLike, n_bins: int = 10, n_options: ArrayLike | None = None
) -> np.ndarray:
    """Class-wise ECE: mean over options of the ECE of each option's probability.

    Static calibration error of Nixon et al. 2019; classwise-ECE of Kull et al. 2019. A model that
    favours a letter shows it here even where its top label is calibrated.

    Parameters
    ----------
    probability : array_like, shape (..., n, k)
        Rows sum to 1.
    answer : array_like of int, shape (n,)
    n_bins : int
        Of equal width.
    n_options : array_like of int, shape (n,), optional
        Options of each question, where they differ; those beyond have probability 0. An option
        then weighs as many questions as have it, so that a rare fifth one does not count like A.

    Returns
    -------
    array, shape (...)
        Within [0, 1].

    Raises
    ------
    InputError
        As :func:`check_probabilities`.
    """
    probability, answer = check_probabilities(probability, answer)
    by_option = np.moveaxis(probability, -1, 0)
    options = len(by_option) if n_options is None else np.mean(np.asarray(n_options))
    right = answer == np.arange(len(by_option))[:, None]
    right = right.reshape(len(by_option), *[1] * (probability.ndim - 2), -1)
    clipped = np.minimum(by_option, 1)
    # a pair (0, 0) of an option that is not there adds nothing to the gap of its bin
    return ece(clipped, np.broadcast_to(right, by_option.shape), n_bins).sum(0) / options


def brier(probability: ArrayLike, answer: ArrayLike) -> np.ndarray:
    """Multi-class Brier score (Brier 1950): mean squared distance from the one-hot answer.

    Parameters
    ----------
    probability : array_like, shape (..., n, k)
    answer : array_like of int, shape (n,)

    Returns
    -------
    array, shape (...)
        Within [0, 2], summed over options.

    Raises
    ------
    InputError
        As :func:`check_probabilities`.
    """
    probability, answer = check_probabilities(probability, answer)
    return ((probability - np.eye(probability.shape[-1])[answer]) ** 2).sum(-1).mean(-1)


def nll(probability: ArrayLike, answer: ArrayLike) -> np.ndarray:
    """Negative log-likelihood of the answer in nats (log loss; Good 1952).

    Parameters
    ----------
    probability : array_like, shape (..., n, k)
    answer : array_like of int, shape (n,)

    Returns
    -------
    array, shape (...)
        Infinite where an answer has probability 0.

    Raises
    ------
    InputError
        As :func:`check_probabilities`.
    """
    probability, answer = check_probabilities(probability, answer)
    with np.errstate(divide="ignore"):
        return -np.log(probability[..., np.arange(len(answer)), answer]).mean(-1)


def auroc(confidence: ArrayLike, correct: ArrayLike) -> np.ndarray:
    """Area under the ROC curve of confidence as a detector of correctness; ties count one half.

    Parameters
    ----------
    confidence, correct : array_like, shape (..., n)

    Returns
    -------
    array, shape (...)
        Within [0, 1]; NaN where all predictions are right, or all wrong.

    Raises
    ------
    InputError
        As :func:`bin_table`.
    """
    confidence, correct = check_pairs(confidence, correct)
    right = correct.sum(-1)
    wrong = correct.shape[-1] - right
    # Mann-Whitney: mean rank of the right ones, ties at their mean rank
    above = (rankdata(confidence, axis=-1) * correct).sum(-1) - right * (right + 1) / 2
    pairs = right * wrong
    return np.where(pairs > 0, above / np.where(pairs > 0, pairs, 1), np.nan)


def signed_gap(confidence: ArrayLike, correct: ArrayLike) -> np.ndarray:
    """Mean confidence minus accuracy, positive when overconfident; (...), within [-1, 1].

    Parameters
    ----------
    confidence, correct : array_like, shape (..., n)

    Raises
    ------
    InputError
        As :func:`bin_table`.
    """
    confidence, correct = check_pairs(confidence, correct)
    return (confidence - correct).mean(-1)
