"""Many control directions, kept as sums over questions: what they score, and where one ranks.

A control is fitted on no answer, so that it has one reading of a question where a fitted direction
has one for each fold; and all that the choice of its scale and its scores need are sums over the
questions of a fold. So memory grows neither with the questions nor with the folds of a fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.special import softmax

from layercal import InputError
from layercal.metrics import calibration
from layercal.metrics.paired import losses

# name of the first control, whose readings are kept question by question, and of all of them
CONTROL, ALL_CONTROLS = "matched control", "matched controls"
# what is summed over questions, before the gaps (correct - confidence) of each confidence bin
SUMMED = ("nll", "brier", "accuracy")
# sums are kept in whole numbers of this, which are the same in whatever order they are added up
UNIT = 2.0**-32
# a control that comes this close to a direction counts as no worse
TIE = 1e-6


def cells(prompts: pd.DataFrame, fold: np.ndarray) -> np.ndarray:
    """Number the parts of the questions that are summed apart: by fold, category and language.

    Parameters
    ----------
    prompts : DataFrame, n rows
        With ``category`` and ``language``.
    fold : array of int, shape (n,)

    Returns
    -------
    array of int, shape (n,)
    """
    return prompts.assign(fold=fold).groupby(["fold", "category", "language"]).ngroup().to_numpy()


def score_rows(logits: np.ndarray, answer: np.ndarray, n_bins: int) -> np.ndarray:
    """What each question adds to the sums.

    Parameters
    ----------
    logits : array, shape (..., n, n_options)
    answer : array of int, shape (n,)
    n_bins : int

    Returns
    -------
    array, shape (..., n, 3 + n_bins)
        ``SUMMED``, then correctness minus confidence in the bin of the confidence, else 0.
    """
    found = np.zeros((*logits.shape[:-1], len(SUMMED) + n_bins))
    for place, score in enumerate(losses(logits, answer).values()):
        found[..., place] = score
    correct = logits.argmax(-1) == answer
    found[..., 2] = correct
    confidence = softmax(logits.astype(float), -1).max(-1)
    bins = len(SUMMED) + calibration.bin_index(confidence, n_bins)
    np.put_along_axis(found, bins[..., None], (correct - confidence)[..., None], -1)
    return found


def choose(
    loss: np.ndarray, accuracy: np.ndarray, alphas: Sequence[float], accuracy_margin: float
) -> np.ndarray:
    """Choose the setting with the lowest loss whose accuracy falls by no more than the margin.

    Scale 0 is always allowed, so the choice is never worse than none on its own split; among
    equals the smallest scale wins, and nothing is done when nothing helps.

    Parameters
    ----------
    loss, accuracy : array, shape (..., settings)
        Over the questions on which to choose.
    alphas : sequence of float
        Scale of each setting; contains 0.
    accuracy_margin : float

    Returns
    -------
    array of int, shape (...)
        Index of the setting.
    """
    order = np.argsort(np.abs(alphas), kind="stable")
    loss, accuracy = loss[..., order], accuracy[..., order]
    # a hair of slack, so that a fall of exactly the margin is allowed
    allowed = accuracy >= accuracy[..., :1] - accuracy_margin - 1e-12
    return order[np.nanargmin(np.where(allowed, loss, np.inf), -1)]


def in_units(scores: np.ndarray) -> np.ndarray:
    """Scores of one question in whole units; int64.

    Raises
    ------
    InputError
        If one is no number, as where a model overflows under a large scale.
    """
    if not np.isfinite(scores).all():
        raise InputError(
            "a reading steered by a control is no number; leave the largest of steering: alphas "
            "out, or set extract: dtype to float32"
        )
    return np.rint(scores / UNIT).astype(np.int64)


@dataclass(kw_only=True)
class Tally:
    """Sums over the questions of each cell, at every layer, control and scale.

    Attributes
    ----------
    sums : dict of array, shape (cells, layers, R, alphas, 3 + n_bins)
        One a mode, of what :func:`score_rows` gives.
    cell, fold : array of int, shape (n,)
        Of each question.
    alphas : sequence of float
        Contains 0.
    accuracy_margin : float
    """

    sums: dict[str, np.ndarray]
    cell: np.ndarray
    fold: np.ndarray
    alphas: Sequence[float]
    accuracy_margin: float

    def __post_init__(self) -> None:
        inside, first, self.count = np.unique(self.cell, return_index=True, return_counts=True)
        self.inside, self.fold_of = inside, np.asarray(self.fold)[first]

    @property
    def n_controls(self) -> int:
        """Number of controls."""
        return next(iter(self.sums.values())).shape[2]

    def take(self, rows: np.ndarray) -> Tally:
        """Keep only some of the questions, which must be whole cells."""
        if set(self.cell[rows]) & set(self.cell[~rows]):
            raise ValueError("sums are kept by cell: some of these questions share one with others")
        return replace(self, cell=self.cell[rows], fold=self.fold[rows])

    def at_each_scale(self, mode: str) -> dict[str, np.ndarray]:
        """Mean scores over all questions at every setting; each (layers, R, alphas)."""
        return _scores(self.sums[mode][self.inside].sum(0), self.count.sum())

    def changes(self, mode: str, places: Sequence[int], source: Tally | None = None) -> dict:
        """Changes of scores, each control at the scale chosen for it on other folds.

        The rule is :func:`choose`, over the layers at ``places`` too where there are several.

        Parameters
        ----------
        mode : str
        places : sequence of int
            Of layers among those swept.
        source : Tally, optional
            Questions on which to choose; those of this tally if left out.

        Returns
        -------
        dict of array, shape (R,)
            ``nll``, ``brier``, ``accuracy`` and ``ece``.
        """
        source = source or self
        alphas = list(self.alphas) * len(places)
        found = np.zeros(())
        for f in np.unique(self.fold_of):
            others = source.fold_of != f
            learnt = source._settings(mode, places, others)
            accuracy = learnt[..., 2] / source.count[others].sum()
            chosen = choose(learnt[..., 0], accuracy, alphas, source.accuracy_margin)
            own = self._settings(mode, places, self.fold_of == f)
            found = found + own[np.arange(len(own)), chosen]
        before = self._settings(mode, places, slice(None))[:, np.abs(alphas).argmin()]
        old, new = (_scores(one, self.count.sum()) for one in (before, found))
        return {name: new[name] - old[name] for name in new}

    def _settings(self, mode: str, places: Sequence[int], of: np.ndarray | slice) -> np.ndarray:
        """Sums over some cells; (R, settings, 3 + n_bins)."""
        picked = self.sums[mode][self.inside[of]].sum(0)[list(places)]
        return np.moveaxis(picked, 0, 1).reshape(picked.shape[1], -1, picked.shape[-1])


def _scores(sums: np.ndarray, n: int) -> dict[str, np.ndarray]:
    found = {name: sums[..., place] / n for place, name in enumerate(SUMMED)}
    return found | {"ece": np.abs(sums[..., len(SUMMED) :]).sum(-1) / n}


def rank_p(change: float, of_controls: np.ndarray) -> float:
    """Chance of so low a change if the direction were one of the controls.

    ``(1 + better) / (1 + R)``, R controls of which so many do as well or better (Phipson & Smyth
    2010, doi:10.2202/1544-6115.1585). A direction that lowers nothing does not rank before controls
    that do harm: its p is 1.

    Parameters
    ----------
    change : float
    of_controls : array, shape (R,)
    """
    if change >= 0:
        return 1.0
    better = int((np.asarray(of_controls) <= change + TIE).sum())
    return (1 + better) / (1 + len(of_controls))
