"""Answering only where confident: risk over coverage, and what it comes to in one number.

Names and definitions of HELM (Liang et al. 2023, arXiv 2211.09110) stand beside those of the
literature on selective classification.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression

from layercal.metrics import calibration

KEPT = 0.8, 0.5  # coverages at which accuracy is given
HELM_TOP = 0.1  # coverage of HELM's selective_acc@10
EDGE = 1e-12  # confidences are kept this far from 0 and 1 before their logit is taken


def risk_coverage(confidence: np.ndarray, correct: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Error rate of the k most confident answers, for k = 1 to n.

    Answers of equal confidence count as in the mean over their orders: no order of the questions
    changes the curve.

    Parameters
    ----------
    confidence, correct : array, shape (n,)

    Returns
    -------
    coverage, risk : array, shape (n,)
    """
    confidence, correct = calibration.check_pairs(confidence, correct)
    values, place, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    wrong = np.bincount(place, 1 - correct, minlength=len(values)) / count
    answered = np.arange(1, len(confidence) + 1)
    return answered / len(confidence), np.cumsum(np.repeat(wrong, count)) / answered


def aurc(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Area under the risk-coverage curve (Geifman & El-Yaniv 2017, arXiv 1705.08500)."""
    return float(risk_coverage(confidence, correct)[1].mean())


def excess_aurc(confidence: np.ndarray, correct: np.ndarray) -> float:
    """AURC less that of an order that has all right answers first (Geifman et al. 2018)."""
    correct = np.asarray(correct, float)
    return aurc(confidence, correct) - aurc(correct, correct)


def accuracy_at(confidence: np.ndarray, correct: np.ndarray, coverage: float) -> float:
    """Accuracy of the most confident answers that make up a share of all, at least one."""
    return 1 - risk_at(risk_coverage(confidence, correct)[1], coverage)


def risk_at(risk: np.ndarray, coverage: float) -> float:
    """Risk of a curve (n,) at a coverage, of at least one answer."""
    return float(risk[max(1, round(coverage * len(risk))) - 1])


def described(confidence: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """AURC, its excess over the best order, and accuracy at 80 and 50 % coverage.

    Parameters
    ----------
    confidence, correct : array, shape (n,)
    """
    return {
        "aurc": aurc(confidence, correct),
        "excess_aurc": excess_aurc(confidence, correct),
        **{f"accuracy_at_{share:.0%}": accuracy_at(confidence, correct, share) for share in KEPT},
    }


def helm(confidence: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    """HELM's calibration metrics of one reading, under its names.

    ``platt_`` errors are those after Platt scaling on the same questions, as HELM has it: no
    cross-fitting. Unlike HELM's, answers of equal confidence have no order.

    Parameters
    ----------
    confidence, correct : array, shape (n,)
        Both right and wrong answers among them, else the ``platt_`` errors are NaN.

    Returns
    -------
    dict of float
        ``ece_10_bin`` (equal mass), ``ece_1_bin``, ``platt_ece_10_bin``, ``platt_ece_1_bin``,
        ``selective_cov_acc_area``, ``selective_acc@10``.
    """
    confidence, correct = calibration.check_pairs(confidence, correct)
    scaled = platt(confidence, correct)(confidence)
    risk = risk_coverage(confidence, correct)[1]
    return {
        **_helm_errors("", confidence, correct),
        **_helm_errors("platt_", scaled, correct),
        "selective_cov_acc_area": float(1 - risk.mean()),
        "selective_acc@10": float(1 - risk[int(HELM_TOP * len(risk))]),
    }


def _helm_errors(name: str, confidence: np.ndarray, correct: np.ndarray) -> dict[str, float]:
    if np.isnan(confidence).any():
        return dict.fromkeys((f"{name}ece_10_bin", f"{name}ece_1_bin"), np.nan)
    return {
        f"{name}ece_10_bin": float(calibration.ece(confidence, correct, 10, "mass")),
        f"{name}ece_1_bin": float(calibration.ece(confidence, correct, 1)),
    }


def platt(confidence: np.ndarray, correct: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Platt scaling (1999) of a confidence: logistic regression of correctness on its logit.

    Parameters
    ----------
    confidence, correct : array, shape (m,)

    Returns
    -------
    function confidence (...) -> confidence (...)
        Of NaN where all answers are right, or all wrong.
    """

    def logits(values: np.ndarray) -> np.ndarray:
        return logit(np.clip(values, EDGE, 1 - EDGE))

    if len(np.unique(correct)) < 2:
        return lambda new: np.full(np.shape(new), np.nan)
    fitted = LogisticRegression(C=1e10).fit(logits(confidence)[:, None], correct)
    slope, shift = fitted.coef_[0, 0], fitted.intercept_[0]
    return lambda new: expit(slope * logits(new) + shift)
