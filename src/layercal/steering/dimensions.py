"""How low-dimensional is the correction, and how much of it is the same for every question."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from layercal.metrics import paired, registry, resampling
from layercal.metrics.readings import Readings

# whose change from a layer to the last is put in: the question's own, the mean over others, or one
# other question's
OWN, MEAN, OTHERS = "own", "mean", "another's"
SOURCES = OWN, MEAN, OTHERS


def table(
    logits: np.ndarray,
    answer: np.ndarray,
    cluster: np.ndarray,
    layers: Sequence[int],
    ranks: Sequence[int],
    draws: int,
    seed: int,
    n_bins: int = 10,
) -> pd.DataFrame:
    """How much of the change from a layer to the last brings how much of its effect.

    Parameters
    ----------
    logits : array, shape (layers, 3, n, ranks + 1, n_options)
        Held-out readings of :func:`layercal.steering.directions.patched` residuals by source
        (``SOURCES``)
        and rank, the first rank being 0; last those of layer L.
    answer, cluster : array of int, shape (n,)
    layers, ranks : sequence of int
    draws, seed : int
        Of the bootstrap.
    n_bins : int

    Returns
    -------
    DataFrame
        ``layer``, ``source``, ``rank``, ``n``, ``accuracy``, ``ece``, ``nll``, and the shares of
        the fall of NLL and of ECE from the layer to L, ``nll_share`` (Fieller) and ``ece_share``
        (percentiles of resamples), with ``_low`` and ``_high`` (95 %). Shares are NaN where there
        is no fall, and have no ends where the fall may be none.
    """
    weights = resampling.cluster_weights(cluster, draws, seed)
    rows = []
    for layer, by_source in zip(layers, logits, strict=True):
        for source, read in zip(SOURCES, by_source, strict=True):
            by_rank = [Readings(read[:, place], answer, {}) for place in range(read.shape[1])]
            nll = _nll_shares(by_rank, cluster)
            errors, ece = _ece_shares(by_rank, weights, n_bins)
            for place, rank in enumerate(ranks):
                head = {"layer": layer, "source": source, "rank": rank, "n": len(answer)}
                means = by_rank[place].per_question()
                head |= {name: means[name].mean() for name in ("accuracy", "nll")}
                ends = ("", "_low", "_high")
                head |= {f"nll_share{end}": v for end, v in zip(ends, nll[place], strict=True)}
                head |= {f"ece_share{end}": v for end, v in zip(ends, ece[place], strict=True)}
                rows.append({**head, "ece": errors[place]})
    return pd.DataFrame(rows)


def _nll_shares(by_rank: list[Readings], cluster: np.ndarray) -> list[tuple]:
    losses = [one.per_question()["nll"] for one in by_rank]
    fall = losses[0] - losses[-1]
    return [paired.share(losses[0] - one, fall, cluster) for one in losses[:-1]]


def _ece_shares(by_rank: list[Readings], weights: np.ndarray, n_bins: int) -> tuple:
    samples = [
        registry.ece_sample(one.confidence, one.correct.astype(float), weights, n_bins)
        for one in by_rank
    ]
    at_one = list(resampling.SCALES).index(1)
    resampled = np.stack([sample.errors()[at_one] for sample in samples])
    observed = np.array([sample.estimate for sample in samples])
    with np.errstate(divide="ignore", invalid="ignore"):  # no fall, no share of it
        share, shares = ((one[0] - one[:-1]) / (one[0] - one[-1]) for one in (observed, resampled))
    low, high = np.quantile(shares, [0.025, 0.975], axis=-1)
    return observed, list(zip(share, low, high, strict=True))


def mean_shift(table: pd.DataFrame, layer: int) -> pd.Series:
    """The row of the shift that is the same for every question, in all its dimensions."""
    one = table[(table["layer"] == layer) & (table["source"] == MEAN)]
    return one.iloc[one["rank"].argmax()]


def in_words(table: pd.DataFrame, layer: int, ranks: Sequence[int] = (1, 8)) -> str:
    """Say what brings which share of the fall from a layer to the last.

    Parameters
    ----------
    table : DataFrame
        From :func:`table`.
    layer : int
    ranks : sequence of int
        Numbers of dimensions to name, where they were tried.
    """
    of_layer = table[table["layer"] == layer]
    said = [
        f"one shift, the same for every question, brings {_shares(mean_shift(table, layer))}",
        *(
            f"in {rank} principal direction(s) the question's own change brings "
            f"{_shares(_row(of_layer, OWN, rank))}, another question's in its place "
            f"{_shares(_row(of_layer, OTHERS, rank))}"
            for rank in ranks
            if rank in set(of_layer["rank"])
        ),
    ]
    return (
        f"Of the fall from layer {layer} to the last, n = {of_layer['n'].iloc[0]:.0f}, with 95 % "
        f"intervals: {'; '.join(said)}."
    )


def _row(table: pd.DataFrame, source: str, rank: int) -> pd.Series:
    return table[(table["source"] == source) & (table["rank"] == rank)].iloc[0]


def _shares(row: pd.Series) -> str:
    def said(score: str) -> str:
        value, low, high = (row[f"{score}_share{end}"] for end in ("", "_low", "_high"))
        if not np.isfinite([value, low, high]).all():
            return f"no share of {score.upper()}, since a fall is not shown"
        return f"{value:.0%} of {score.upper()} ({low:.0%} to {high:.0%})"

    return f"{said('nll')}, {said('ece')}"
