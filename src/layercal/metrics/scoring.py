"""Readings of the same questions compared: changes of their metrics with paired intervals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd
from scipy.special import softmax

from layercal.metrics import accuracy, calibration, differences, paired, registry, resampling

MIN_COUNT = 30  # samples of a bin from which on its gap can be resampled
WORST = f"mce_min{MIN_COUNT}"


@dataclass(kw_only=True)
class Scoring:
    """Questions and how readings of them are scored.

    Attributes
    ----------
    answer, cluster : array of int, shape (n,)
        Of each row. The rotations and translations of a question share a cluster; they are
        resampled together.
    question : array of int, shape (n,), optional
        Equal for the rotations of one question, which the null floor lets be right together; each
        row is a question of its own if left out.
    accuracy_margin : float
    n_bins, draws, seed : int
    """

    answer: np.ndarray
    cluster: np.ndarray
    question: np.ndarray | None = None
    accuracy_margin: float = 0.02
    n_bins: int = 10
    draws: int = 1000
    seed: int = 0

    @classmethod
    def of_prompts(cls, prompts: pd.DataFrame, **settings: Any) -> Self:
        """Of the rows of ``prompts.parquet``; the rest by name."""
        return cls(
            answer=prompts["answer"].to_numpy(),
            cluster=pd.factorize(prompts["cluster"])[0],
            question=pd.factorize(prompts["question_id"])[0],
            **settings,
        )

    @cached_property
    def weights(self) -> np.ndarray:
        """Bootstrap resamples of the questions; (draws, n)."""
        return resampling.cluster_weights(self.cluster, self.draws, self.seed)

    @property
    def n_questions(self) -> int:
        """Number of questions, however many rotations of each there are."""
        return len(self.answer if self.question is None else np.unique(self.question))

    def read(self, logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Confidence and correctness of logits (..., n, n_options); each (..., n)."""
        return softmax(logits.astype(float), -1).max(-1), logits.argmax(-1) == self.answer

    def ece(self, logits: np.ndarray) -> float:
        """ECE of logits (n, n_options)."""
        return float(calibration.ece(*self.read(logits), self.n_bins))

    def errors(self, confidence: np.ndarray, correct: np.ndarray) -> dict:
        """ECE of one reading, and MCE where a bin is full enough, observed and resampled."""
        right = correct.astype(float)
        worst = registry.mce_sample(confidence, right, self.weights, self.n_bins, MIN_COUNT)
        found = {"ece": self.ece_sample(confidence, correct)}
        return found | ({WORST: worst} if worst else {})

    def ece_sample(self, confidence: np.ndarray, correct: np.ndarray) -> resampling.GapSample:
        """ECE of one reading, observed and resampled."""
        return registry.ece_sample(confidence, correct.astype(float), self.weights, self.n_bins)

    def means(self, confidence: np.ndarray, correct: np.ndarray) -> dict:
        """Accuracy and confidence of one reading, per question."""
        return {"accuracy": correct.astype(float), "confidence": confidence}

    def resampled_mean(self, values: np.ndarray) -> np.ndarray:
        """Mean over each resample of the questions; (draws,)."""
        return self.weights @ values / len(values)

    def null(self, sample: resampling.GapSample, confidence: np.ndarray) -> np.ndarray:
        """Errors of the top label if it were perfectly calibrated; (draws,)."""
        return sample.top_label_null(confidence, self._uniform)

    @cached_property
    def _uniform(self) -> np.ndarray | None:
        return resampling.null_uniform(self.cluster, self.draws, self.seed)

    def changes(self, before: np.ndarray, after: np.ndarray) -> dict:
        """Compare two readings of the same questions.

        Parameters
        ----------
        before, after : array, shape (n, n_options)
            Logits.

        Returns
        -------
        dict
            ECE, MCE over bins of at least ``MIN_COUNT`` (None where no bin of one side is so full),
            accuracy and mean confidence before and after; their changes with paired 95 % intervals,
            that of accuracy by Tango's score, relative ones of ECE and MCE, p-values of no change;
            whether accuracy is kept within the margin; NLL and Brier as :meth:`score_changes` gives
            them; the null floor and the 95 % interval of ECE before.
        """
        found: dict = {"n": self.n_questions}
        pairs = self.read(before), self.read(after)
        errors = [self.errors(*pair) for pair in pairs]
        for metric in ("ece", WORST):
            found |= _error_change(metric, *(side.get(metric) for side in errors))
        means = [self.means(*pair) for pair in pairs]
        intervals = {
            "accuracy": accuracy.paired_interval(pairs[0][1], pairs[1][1], self.cluster),
            "confidence": self._interval(means[1]["confidence"] - means[0]["confidence"]),
        }
        for metric, (low, high) in intervals.items():
            old, new = (side[metric].mean() for side in means)
            found |= _change(metric, old, new, low, high)
        found |= self.score_changes(before, after)
        null = self.null(errors[0]["ece"], pairs[0][0])
        found["ece_null_mean"] = float(null.mean())
        found["ece_null_high"] = float(np.quantile(null, 0.95))
        found["ece_before_low"], found["ece_before_high"] = resampling.error_interval(
            errors[0]["ece"]
        )
        found["accuracy_margin"] = self.accuracy_margin
        found["accuracy_kept"] = resampling.equivalent(
            found["accuracy_change_low"], found["accuracy_change_high"], self.accuracy_margin
        )
        return found

    def _interval(self, values: np.ndarray) -> tuple[float, float]:
        low, high = resampling.interval(values.mean(), self.resampled_mean(values))
        return float(low), float(high)

    def score_changes(self, before: np.ndarray, after: np.ndarray) -> dict:
        """Compare two readings by the scores that decide claims.

        Parameters
        ----------
        before, after : array, shape (n, n_options)
            Logits.

        Returns
        -------
        dict
            NLL and Brier before and after, ``nll_change`` and ``brier_change`` with Student's 95 %
            interval, standard error and p-value; ``freedom``, the degrees of freedom.
        """
        old, new = (paired.losses(one, self.answer) for one in (before, after))
        found: dict = {}
        for name in old:
            change = paired.mean_change(new[name] - old[name], self.cluster)
            low, high = change.interval()
            found |= _change(name, old[name].mean(), new[name].mean(), low, high)
            found |= {f"{name}_change_error": change.error, f"{name}_p": change.p}
            found["freedom"] = change.freedom
        return found

    def compare(self, name: str, before: np.ndarray, after: np.ndarray) -> dict:
        """:meth:`score_changes`, and ECE as a description, under names that begin with ``name``."""
        found = self.score_changes(before, after)
        del found["freedom"]
        found |= {"ece_before": self.ece(before), "ece_after": self.ece(after)}
        return {f"{name}_{key}": value for key, value in found.items()}

    def accuracy_interval(
        self, before: np.ndarray, after: np.ndarray, level: float
    ) -> tuple[float, float]:
        """Interval of the change of accuracy between logits (n, n_options), at any level."""
        old, new = (self.read(one)[1] for one in (before, after))
        return accuracy.paired_interval(old, new, self.cluster, level)


def _error_change(
    metric: str, old: resampling.GapSample | None, new: resampling.GapSample | None
) -> dict:
    if old is None or new is None:
        names = ("before", "after", "change", "change_low", "change_high", "p", "relative_change")
        return {f"{metric}_{name}": None for name in names}
    change = differences.error_difference(new, old)
    return {
        **_change(metric, old.estimate, new.estimate, change.low, change.high),
        f"{metric}_p": change.p,
        f"{metric}_relative_change": relative_change(old.estimate, new.estimate),
    }


def relative_change(old: float, new: float) -> float:
    """Change of an error over what it was; finite, if large, where it was 0."""
    return (new - old) / max(old, 1e-9)


def _change(metric: str, old: float, new: float, low: float, high: float) -> dict:
    return {
        f"{metric}_before": float(old),
        f"{metric}_after": float(new),
        f"{metric}_change": float(new - old),
        f"{metric}_change_low": float(low),
        f"{metric}_change_high": float(high),
    }
