"""Models, and ways of asking, compared on the same questions.

A comparison is of two models on one question set, or of one model on two sets that ask the same
questions differently: by another prompt, with other shots, in all orders of the options. Question
by question it is far surer than two intervals side by side, since most questions are as hard for
the one as for the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from layercal.metrics import accuracy, differences, resampling
from layercal.metrics.phase import Phase
from layercal.metrics.scoring import Scoring

LEVEL = 0.05  # of all comparisons of a study together
# what one question has in both sets; files of one name name different questions alike
IDENTITY = ["language", "answer", "n_options"]
COLUMNS = ["model_a", "questions_a", "model_b", "questions_b", "n", "metric", "value_a", "value_b"]
COLUMNS += ["change", "ci_low", "ci_high", "p", "p_holm", "outcome", "reason"]


@dataclass(kw_only=True)
class Reading:
    """What one model makes of one question set, as far as it is compared.

    Attributes
    ----------
    model, questions : str
    asked : DataFrame, n rows
        By ``question_id``, in the order of the readings: ``cluster``, ``language``, ``n_options``
        and ``answer``, all as first asked.
    peak, final : array, shape (n, k)
        Logits of the options at the peak of ECE and at the last layer; of several orders of the
        options the average, option by option.
    phase : Phase
    """

    model: str
    questions: str
    asked: pd.DataFrame
    peak: np.ndarray
    final: np.ndarray
    phase: Phase

    def take(self, names: pd.Index) -> Reading:
        """Keep some of the questions, in this order."""
        rows = self.asked.index.get_indexer(names)
        return replace(
            self, asked=self.asked.iloc[rows], peak=self.peak[rows], final=self.final[rows]
        )

    @property
    def peaks(self) -> int:
        """Layers among which the peak was picked."""
        return max(1, self.phase.final_layer - self.phase.decision_layer)


def table(
    readings: Sequence[Reading], min_group: int, n_bins: int, draws: int, seed: int
) -> pd.DataFrame:
    """Compare all readings that share their model or their question set.

    Parameters
    ----------
    readings : sequence of Reading
    min_group : int
        Two readings that share fewer clusters of questions are not compared.
    n_bins, draws, seed : int

    Returns
    -------
    DataFrame
        A row a comparison and metric (``nll``, ``brier``, ``accuracy``, ``ece``, ``correction``):
        ``model_a``, ``questions_a``, ``model_b``, ``questions_b``; ``n``, the questions that both
        hold; ``value_a``, ``value_b`` and their ``change``, b minus a, with ``ci_low``, ``ci_high``
        (95 %) and ``p`` of none; ``p_holm``, adjusted for all rows that have a p-value; ``outcome``
        at the level of 0.05 after it: ``lower`` (b's), ``higher``, ``undecided``, or ``not
        applicable`` for a ``reason``.
    """
    rows = []
    for a, b in combinations(readings, 2):
        if a.model != b.model and a.questions != b.questions:
            continue
        names = shared(a, b)
        pair: dict[str, object] = {"model_a": a.model, "questions_a": a.questions}
        pair |= {"model_b": b.model, "questions_b": b.questions, "n": len(names)}
        if clusters(a.asked.loc[names], b.asked.loc[names]).max(initial=-1) + 1 >= min_group:
            compared = compare(a.take(names), b.take(names), n_bins, draws, seed)
            rows += [{**pair, **row} for row in compared]
    return _decided(pd.DataFrame(rows, columns=COLUMNS))


def _decided(rows: pd.DataFrame) -> pd.DataFrame:
    tested = rows["p"].notna().to_numpy()
    adjusted = np.full(len(rows), np.nan)
    adjusted[tested] = resampling.holm(rows["p"][tested].tolist())
    rows["p_holm"] = adjusted
    rows["outcome"] = np.select(
        [~tested, rows["p_holm"] > LEVEL, rows["change"] < 0],
        ["not applicable", "undecided", "lower"],
        "higher",
    )
    return rows


def shared(a: Reading, b: Reading) -> pd.Index:
    """Names of the questions that both hold, in the order of the first.

    None if any name is that of different questions: then the sets have nothing in common.
    """
    names = a.asked.index[a.asked.index.isin(b.asked.index)]
    same = a.asked.loc[names, IDENTITY].eq(b.asked.loc[names, IDENTITY])
    return names if same.all(axis=None) else names[:0]


def clusters(a: pd.DataFrame, b: pd.DataFrame) -> np.ndarray:
    """Clusters of questions that belong together in either of two sets; (n,), from 0 on.

    Parameters
    ----------
    a, b : DataFrame, n rows
        Of the same questions, each with its ``cluster`` in one set.
    """
    ends = [pd.factorize(side["cluster"])[0] for side in (a, b)]
    size = len(a)
    edges = coo_array((np.ones(size), (ends[0], size + ends[1])), shape=(2 * size, 2 * size))
    return pd.factorize(connected_components(edges, directed=False)[1][ends[0]])[0]


def compare(a: Reading, b: Reading, n_bins: int, draws: int, seed: int) -> Iterator[dict]:
    """Compare two readings of the same questions, metric by metric: b minus a.

    Parameters
    ----------
    a, b : Reading
        Of the same questions in the same order.
    n_bins, draws, seed : int

    Yields
    ------
    dict
        As a row of :func:`table`, without its p-value adjusted.
    """
    scoring = Scoring(
        answer=a.asked["answer"].to_numpy(),
        cluster=clusters(a.asked, b.asked),
        n_bins=n_bins,
        draws=draws,
        seed=seed,
    )
    scores = scoring.score_changes(a.final, b.final)
    for metric in ("nll", "brier"):
        ends = scores[f"{metric}_change_low"], scores[f"{metric}_change_high"]
        sides = scores[f"{metric}_before"], scores[f"{metric}_after"]
        yield _row(metric, *sides, *ends, scores[f"{metric}_p"])
    old, new = scoring.read(a.final), scoring.read(b.final)
    right = old[1], new[1], scoring.cluster
    ends = accuracy.paired_interval(*right)
    yield _row("accuracy", old[1].mean(), new[1].mean(), *ends, accuracy.paired_p(*right))
    errors = scoring.ece_sample(*old), scoring.ece_sample(*new)
    ece = differences.error_difference(errors[1], errors[0])
    yield _row("ece", errors[0].estimate, errors[1].estimate, ece.low, ece.high, ece.p)
    yield _corrections(a, b, errors, scoring)


def _corrections(
    a: Reading, b: Reading, final: Sequence[resampling.GapSample], scoring: Scoring
) -> dict:
    """How far ECE falls from each peak to the end, compared; allows for both having been picked."""
    at_chance = [f"{one.model} on {one.questions}" for one in (a, b) if not one.phase.above_chance]
    if at_chance:
        reason = f"nothing to correct at chance: {', '.join(at_chance)}"
        return {"metric": "correction", "reason": reason}
    peaks = [scoring.ece_sample(*scoring.read(side.peak)) for side in (a, b)]
    fall = differences.contrast(
        [peaks[1], final[1], peaks[0], final[0]], [1, -1, -1, 1], a.peaks * b.peaks
    )
    old, new = (peak.estimate - last.estimate for peak, last in zip(peaks, final, strict=True))
    return _row("correction", old, new, fall.low, fall.high, fall.p)


def _row(metric: str, a: float, b: float, low: float, high: float, p: float) -> dict:
    values = {"value_a": a, "value_b": b, "change": b - a, "ci_low": low, "ci_high": high, "p": p}
    return {"metric": metric, "reason": "", **{name: float(x) for name, x in values.items()}}
