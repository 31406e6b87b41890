"""Accuracies: how far two of one set lie apart, and whether a model knows more than its letters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq
from scipy.stats import norm

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

LEVEL = 0.05  # of the test against chance


def paired_interval(
    before: ArrayLike, after: ArrayLike, cluster: ArrayLike | None = None, level: float = 0.95
) -> tuple[float, float]:
    """Score interval of a change of accuracy over the same questions (Tango 1998).

    The bootstrap is too short here: it knows nothing of changes that did not happen to occur. Rows
    of one cluster do not count in full: the interval is that of as many questions as say as much
    (the counts over the design effect, Rao & Scott 1992), and a cluster that changes as a whole is
    added to the estimate of that effect, so that few changes are not taken as independent.

    Parameters
    ----------
    before, after : array of bool, shape (n,)
        Whether each question is answered right.
    cluster : array of int, shape (n,), optional
        Equal where rows belong together; each on its own if left out.
    level : float

    Returns
    -------
    low, high : float
        Of mean(after) - mean(before); doi:10.1002/(SICI)1097-0258(19980430)17:8<891::AID-SIM780>3.0
    """
    return _tango(*_changed(before, after, cluster), float(norm.ppf((1 + level) / 2)))


def paired_p(before: ArrayLike, after: ArrayLike, cluster: ArrayLike | None = None) -> float:
    """Two-sided p-value of no change of accuracy: McNemar's test (1947), Tango's score at 0.

    Without the correction for continuity, which costs power and cures nothing (Fagerland et al.
    2013, doi:10.1186/1471-2288-13-91); below 1 - level if and only if 0 lies outside
    :func:`paired_interval`.

    Parameters
    ----------
    before, after, cluster : array, shape (n,)
        As in :func:`paired_interval`.
    """
    gained, lost, _ = _changed(before, after, cluster)
    if gained == lost:
        return 1.0
    return float(2 * norm.sf(abs(gained - lost) / np.sqrt(gained + lost)))


def _changed(
    before: ArrayLike, after: ArrayLike, cluster: ArrayLike | None
) -> tuple[float, float, float]:
    """Questions gained, lost, and in all; of rows in clusters, as many as say as much."""
    change = np.asarray(after, float) - np.asarray(before, float)
    effect = 1.0 if cluster is None else _design_effect(change, np.asarray(cluster))
    gained, lost, n = ((change > 0).sum(), (change < 0).sum(), len(change))
    return gained / effect, lost / effect, n / effect


def _tango(gained: float, lost: float, n: float, z: float) -> tuple[float, float]:
    """Differences at which Tango's score is z and -z."""
    estimate = (gained - lost) / n

    def score(difference: float) -> float:
        linear = (2 * n - gained + lost) * difference - gained - lost
        root = np.sqrt(linear**2 + 8 * n * lost * difference * (1 - difference))
        losing = (root - linear) / (4 * n)  # share of losses most likely at this difference
        variance = n * (2 * losing + difference * (1 - difference))
        return (gained - lost - n * difference) / np.sqrt(max(variance, 1e-300))

    low = brentq(lambda at: score(at) - z, -1, estimate) if estimate > -1 else -1.0
    high = brentq(lambda at: score(at) + z, estimate, 1) if estimate < 1 else 1.0
    return float(low), float(high)


def _design_effect(change: np.ndarray, cluster: np.ndarray) -> float:
    """Variance of a mean over clustered rows in units of that over independent ones, at least 1."""
    _, index, size = np.unique(cluster, return_inverse=True, return_counts=True)
    rest = change - change.mean()
    typical = (size**2).sum() / size.sum()
    together = (np.bincount(index, rest) ** 2).sum() + typical**2
    return max(1.0, together / ((rest**2).sum() + typical))


@dataclass(frozen=True)
class AboveChance:
    """Accuracy beside that of the same letters dealt out at random.

    Attributes
    ----------
    accuracy, chance : float
        ``chance`` is what the letters named and the letters right give together.
    p : float
        One-sided, of no more than chance.
    top_letter : float
        Share of the predictions that name the letter named most.
    """

    accuracy: float
    chance: float
    p: float
    top_letter: float

    @property
    def above(self) -> bool:
        """Whether accuracy lies above chance, at the level of 0.05."""
        return self.p <= LEVEL


def above_chance(
    predicted: ArrayLike,
    answer: ArrayLike,
    n_options: ArrayLike | None = None,
    cluster: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> AboveChance:
    """Whether letters are named where they are right, by permutation of the answers.

    Guessing among k options is right in 1 / k, but always naming the commonest letter is right more
    often, knowing as little. Which question has which answer is what knowing is about, so this is
    what is permuted.

    Parameters
    ----------
    predicted, answer : array of int, shape (n,)
        Options by letter, as asked.
    n_options : array of int, shape (n,), optional
        Where they differ; answers are dealt out among questions of equally many options.
    cluster : array of int, shape (n,), optional
        Rows that belong together, in one order throughout; their answers stay together.
    draws, seed : int

    Returns
    -------
    AboveChance
    """
    predicted, answer = np.asarray(predicted), np.asarray(answer)
    hits, expected = np.zeros(draws), 0.0
    rng = np.random.default_rng(seed)
    for rows in _exchangeable(len(answer), n_options, cluster):
        named, right = predicted[rows], answer[rows]
        letters = int(max(named.max(), right.max())) + 1
        for said, known in zip(named.T, right.T, strict=True):
            counts = (np.bincount(letter, minlength=letters) for letter in (said, known))
            expected += float(np.prod(list(counts), 0).sum()) / len(rows)
        for draw in range(draws):
            hits[draw] += (named == right[rng.permutation(len(rows))]).sum()
    observed = int((predicted == answer).sum())
    return AboveChance(
        observed / len(answer),
        expected / len(answer),
        float((1 + (hits >= observed).sum()) / (1 + draws)),
        float(np.bincount(predicted).max() / len(answer)),
    )


def permuted_answers(
    answer: ArrayLike,
    n_options: ArrayLike | None = None,
    cluster: ArrayLike | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Answers dealt out at random: with them, any reading has its letters and knows nothing.

    Parameters
    ----------
    answer, n_options, cluster : array of int, shape (n,)
        As in :func:`above_chance`.
    seed : int

    Returns
    -------
    array of int, shape (n,)
    """
    answer, rng = np.asarray(answer), np.random.default_rng(seed)
    dealt = answer.copy()
    for rows in _exchangeable(len(answer), n_options, cluster):
        dealt[rows] = answer[rows[rng.permutation(len(rows))]]
    return dealt


def _exchangeable(
    n: int, n_options: ArrayLike | None, cluster: ArrayLike | None
) -> Iterator[np.ndarray]:
    """Rows by cluster, (clusters, rows of each), of those that may swap their answers."""
    options = np.zeros(n, int) if n_options is None else np.asarray(n_options)
    cluster = np.arange(n) if cluster is None else np.asarray(cluster)
    order = np.argsort(cluster, kind="stable")
    _, first = np.unique(cluster[order], return_index=True)
    alike: dict[tuple, list] = {}
    for rows in np.split(order, first[1:]):
        alike.setdefault(tuple(options[rows]), []).append(rows)
    yield from map(np.array, alike.values())
