"""Recalibration of the option logits themselves: what steering has to be compared with.

A baseline is a function ``(logits (m, k), answer (m,)) -> function logits (..., k) -> (..., k)``,
found by its name in ``BASELINES``. Logits are -inf where a question has no such option.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import minimize, minimize_scalar
from scipy.special import log_softmax, logsumexp

from layercal.metrics.recalibration import TEMPERATURES

Recalibrated = Callable[[np.ndarray], np.ndarray]
Baseline = Callable[[np.ndarray, np.ndarray], Recalibrated]


def nll(logits: np.ndarray, answer: np.ndarray) -> float:
    """Mean negative log-likelihood of the answers, in nats."""
    return float(-log_softmax(logits, -1)[np.arange(len(answer)), answer].mean())


def temperature(logits: np.ndarray, answer: np.ndarray) -> Recalibrated:
    """Temperature scaling (Guo et al. 2017): one divisor, by maximum likelihood.

    Parameters
    ----------
    logits : array, shape (m, k)
    answer : array of int, shape (m,)
    """
    bounds = tuple(np.log(TEMPERATURES))
    found = minimize_scalar(
        lambda log_t: nll(logits / np.exp(log_t), answer), bounds=bounds, method="bounded"
    )
    return lambda new: new / np.exp(found.x)


def vector_scaling(logits: np.ndarray, answer: np.ndarray) -> Recalibrated:
    """Vector scaling (Guo et al. 2017): a factor and a shift for each letter, maximum likelihood.

    Parameters
    ----------
    logits : array, shape (m, k)
    answer : array of int, shape (m,)
    """
    k = logits.shape[-1]
    there = np.isfinite(logits)
    known = np.where(there, logits, 0.0)
    right = np.eye(k)[answer]

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        factor, shift = parameters.reshape(2, k)
        scaled = np.where(there, known * factor + shift, -np.inf)
        excess = (np.exp(log_softmax(scaled, -1)) - right) / len(answer)
        slope = np.concatenate([(excess * known).sum(0), excess.sum(0)])
        return nll(scaled, answer), slope

    start = np.concatenate([np.ones(k), np.zeros(k)])
    factor, shift = minimize(loss, start, jac=True, method="L-BFGS-B").x.reshape(2, k)
    return lambda new: (
        np.where(np.isfinite(new), new, 0) * factor + np.where(np.isfinite(new), shift, -np.inf)
    )


def letter_prior(logits: np.ndarray, answer: np.ndarray) -> Recalibrated:
    """Contextual correction: divide by the mean probability of each letter (Zhou et al. 2024).

    Batch calibration, arXiv 2309.17249: what the model says of a letter over all questions is taken
    for its bias. The answers are not looked at.

    Parameters
    ----------
    logits : array, shape (m, k)
    answer : array of int, shape (m,)
    """
    said = log_softmax(logits, -1)
    there = np.isfinite(said)
    prior = logsumexp(said, 0) - np.log(np.maximum(there.sum(0), 1))
    prior = np.where(there.any(0), prior, 0.0)
    return lambda new: log_softmax(new, -1) - prior


BASELINES: dict[str, Baseline] = {
    "temperature": temperature,
    "vector scaling": vector_scaling,
    "letter prior": letter_prior,
}


def cross_apply(
    baseline: Baseline, logits: np.ndarray, answer: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """Recalibrate each fold by a fit on the others.

    Parameters
    ----------
    baseline : function
        Of ``BASELINES``.
    logits : array, shape (n, k)
    answer, fold : array of int, shape (n,)

    Returns
    -------
    array, shape (n, k)
    """
    found = np.empty_like(logits, dtype=float)
    for f in np.unique(fold):
        inside = fold == f
        found[inside] = baseline(logits[~inside].astype(float), answer[~inside])(logits[inside])
    return found
