"""What a user could do instead of steering: other readings of the same pass, learnt from answers.

Each rival is fitted, and all that it chooses is chosen, on the other folds: whole clusters of
questions are held out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pandas as pd
from scipy.special import logsumexp, softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from layercal.metrics import paired, readings, registry, resampling, selective
from layercal.metrics.recalibration import inverse_temperature

LAST, PROBE = "last layer", "probe of correctness"
ROUNDS = 200  # of expectation maximisation
RANK = 64  # principal components of the stream that a probe sees
PENALTIES = 1e-4, 1e-3, 1e-2, 1e-1  # inverse; one is chosen

# function log_p (layers, ..., k) -> log_p (..., k), learnt of log_p (layers, m, k) and answer (m,)
Reader = Callable[[np.ndarray], np.ndarray]


def temperature(log_p: np.ndarray, answer: np.ndarray) -> Reader:
    """The last layer at its temperature."""
    factor = float(inverse_temperature(log_p[-1], answer))
    return lambda new: factor * new[-1]


def best_layer(log_p: np.ndarray, answer: np.ndarray) -> Reader:
    """The layer of the lowest NLL."""
    best = int(_nll(log_p, answer).argmin())
    return lambda new: new[best]


def mean_of_last(log_p: np.ndarray, answer: np.ndarray) -> Reader:
    """Mean probabilities of the last layers, of as many as give the lowest NLL."""
    means = np.stack([_mean(log_p[-count:]) for count in range(1, len(log_p) + 1)])
    count = int(_nll(means, answer).argmin()) + 1
    return lambda new: _mean(new[-count:])


def weighted_layers(log_p: np.ndarray, answer: np.ndarray) -> Reader:
    """Mixture of all layers' probabilities, of the weights that are the most likely.

    By expectation maximisation (Dempster et al. 1977), as of interpolated language models (Jelinek
    & Mercer 1980); the likelihood is concave in the weights.
    """
    of_answer = np.exp(np.take_along_axis(log_p, answer[None, :, None], -1)[..., 0])
    weights = np.full(len(log_p), 1 / len(log_p))
    for _ in range(ROUNDS):
        part = weights[:, None] * of_answer
        weights = (part / np.maximum(part.sum(0), 1e-300)).mean(-1)
    with np.errstate(divide="ignore"):
        log_w = np.log(weights)
    return lambda new: logsumexp(new + log_w[:, None, None], 0)


RIVALS = {
    "last layer, temperature": temperature,
    "best layer": best_layer,
    "mean of the last layers": mean_of_last,
    "weighted layers": weighted_layers,
}


def _mean(log_p: np.ndarray) -> np.ndarray:
    return logsumexp(log_p, 0) - np.log(len(log_p))


def _nll(log_p: np.ndarray, answer: np.ndarray) -> np.ndarray:
    return paired.losses(log_p, answer)["nll"].mean(-1)


def cross_read(
    fit: Callable, log_p: np.ndarray, answer: np.ndarray, fold: np.ndarray
) -> np.ndarray:
    """Log-probabilities of each question by what was learnt on the other folds; (n, k).

    Parameters
    ----------
    fit : function
        Of ``RIVALS``.
    log_p : array, shape (layers, n, k)
    answer, fold : array of int, shape (n,)
    """
    read = np.empty(log_p.shape[1:])
    for f in np.unique(fold):
        inside = fold == f
        read[inside] = fit(log_p[:, ~inside], answer[~inside])(log_p[:, inside])
    return read


def probed(
    stream: Iterable[np.ndarray], correct: np.ndarray, fold: np.ndarray, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Probability that an answer is right, by a logistic regression on the stream of each layer.

    Of the standardised stream's first ``RANK`` principal components, with a ridge penalty that is
    chosen on the folds that are not held out.

    Parameters
    ----------
    stream : iterable of array, shape (n, d)
        Layer by layer.
    correct : array of bool, shape (n,)
    fold : array of int, shape (n,)
    seed : int

    Returns
    -------
    by_layer : array, shape (layers, n)
        Held-out probabilities; NaN where all other answers are right, or all wrong, or the stream
        is the same in all prompts.
    chosen : array, shape (n,)
        Those of the layer that has the lowest loss on the folds that are not held out.
    """
    read = [_probe_folds(np.asarray(layer, float), correct, fold, seed) for layer in stream]
    by_layer, loss = (np.stack(each) for each in zip(*read, strict=True))
    return by_layer, np.take_along_axis(by_layer, loss.argmin(0)[None], 0)[0]


def _probe_folds(
    stream: np.ndarray, correct: np.ndarray, fold: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Held-out probability of each question at a layer, and the loss inside of its fold's fit."""
    probability, loss = np.full(len(fold), np.nan), np.full(len(fold), np.inf)
    for f in np.unique(fold):
        inside = fold == f
        # the embedding of the last token is the same in all prompts
        if len(np.unique(correct[~inside])) == 2 and np.ptp(stream[~inside], axis=0).any():
            fitted, least = _probe(stream[~inside], correct[~inside], fold[~inside], seed)
            probability[inside], loss[inside] = fitted(stream[inside]), least
    return probability, loss


def _probe(
    stream: np.ndarray, correct: np.ndarray, fold: np.ndarray, seed: int
) -> tuple[Reader, float]:
    rank = min(RANK, *stream.shape)
    shown = make_pipeline(StandardScaler(), PCA(rank, random_state=seed)).fit(stream)
    seen = shown.transform(stream)
    losses = [_inner_loss(seen, correct, fold, penalty) for penalty in PENALTIES]
    best = PENALTIES[int(np.argmin(losses))]
    fitted = LogisticRegression(C=best, max_iter=1000).fit(seen, correct)
    return lambda new: fitted.predict_proba(shown.transform(new))[:, 1], min(losses)


def _inner_loss(seen: np.ndarray, correct: np.ndarray, fold: np.ndarray, penalty: float) -> float:
    total = 0.0
    for f in np.unique(fold):
        inside = fold == f
        if len(np.unique(correct[~inside])) < 2:
            return np.inf
        fitted = LogisticRegression(C=penalty, max_iter=1000).fit(seen[~inside], correct[~inside])
        said = fitted.predict_proba(seen[inside])
        total += log_loss(correct[inside], said, labels=[False, True], normalize=False)
    return total / len(fold)


def table(
    read: readings.Readings,
    stream: Iterable[np.ndarray],
    fold: np.ndarray,
    weights: np.ndarray,
    n_bins: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Scores of each rival, and by how much it changes those of the last layer.

    Parameters
    ----------
    read : Readings
        ``logits`` of shape (layers, n, k).
    stream : iterable of array, shape (n, d)
        Layer by layer.
    fold : array of int, shape (n,)
    weights : array, shape (draws, n)
    n_bins, seed : int

    Returns
    -------
    DataFrame
        ``rival``, ``layer`` (of a probe of one layer; -1 of the rest), ``metric``, ``value``,
        ``ci_low``, ``ci_high``. Of a probe, which keeps the last layer's answer, only what
        confidence alone decides.
    """
    last = read.layer(len(read.logits) - 1)
    scored = Scores(last, weights, n_bins)
    read_by = {LAST: last.log_probability}
    for name, fit in RIVALS.items():
        read_by[name] = cross_read(fit, read.log_probability, read.answer, fold)
    rows = [
        {"rival": name, "layer": -1, **row}
        for name, one in read_by.items()
        for row in scored.of_logits(one)
    ]
    by_layer, chosen = probed(stream, last.correct, fold, seed)
    for layer, confidence in [(-1, chosen), *enumerate(by_layer)]:
        rows += [
            {"rival": PROBE, "layer": layer, **row} for row in scored.of_confidence(confidence)
        ]
    return pd.DataFrame(rows)


class Scores:
    """Scores of readings, and their paired changes from one.

    Parameters
    ----------
    before : Readings
        Of one layer.
    weights : array, shape (draws, n)
    n_bins : int
    """

    def __init__(self, before: readings.Readings, weights: np.ndarray, n_bins: int):
        self.before, self.weights, self.n_bins = before, weights, n_bins
        self.losses = paired.losses(before.logits, before.answer)
        self.losses["confidence_brier"] = (before.confidence - before.correct) ** 2

    def of_logits(self, logits: np.ndarray) -> Iterator[dict]:
        """Rows of option logits (n, k)."""
        correct = logits.argmax(-1) == self.before.answer
        yield from self._means({"accuracy": correct * 1.0})
        yield from self._means(paired.losses(logits, self.before.answer))
        yield from self._confidence(softmax(logits, -1).max(-1), correct)

    def of_confidence(self, confidence: np.ndarray) -> Iterator[dict]:
        """Rows of another confidence (n,) in the same answers."""
        yield from self._means({"accuracy": self.before.correct * 1.0})
        if not np.isnan(confidence).any():
            yield from self._confidence(confidence, self.before.correct)

    def _confidence(self, confidence: np.ndarray, correct: np.ndarray) -> Iterator[dict]:
        yield from self._means({"confidence_brier": (confidence - correct) ** 2})
        sample = registry.ece_sample(confidence, correct * 1.0, self.weights, self.n_bins)
        yield _row("ece", sample.estimate, *resampling.error_interval(sample))
        yield from self._means({"auroc": readings.auroc_values(confidence, correct)})
        described = selective.described(confidence, correct) | selective.helm(confidence, correct)
        for metric, value in described.items():
            yield _row(metric, value)

    def _means(self, scores: dict[str, np.ndarray]) -> Iterator[dict]:
        for metric, values in scores.items():
            each = paired.mean_change(values, self.before.cluster)
            yield _row(metric, each.value, *each.interval())
            if metric in self.losses:
                each = paired.mean_change(values - self.losses[metric], self.before.cluster)
                yield _row(f"{metric}_change", each.value, *each.interval())


def _row(metric: str, value: float, low: float = np.nan, high: float = np.nan) -> dict:
    return {"metric": metric, "value": float(value), "ci_low": float(low), "ci_high": float(high)}
