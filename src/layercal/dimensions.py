"""How low-dimensional is the correction: its effect by the number of dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import softmax

from layercal import resampling


def table(
    logits: np.ndarray,
    answer: np.ndarray,
    weights: np.ndarray,
    layers: Sequence[int],
    ranks: Sequence[int],
    n_bins: int = 10,
) -> pd.DataFrame:
    """How many dimensions of the change from a layer to the last bring how much of its effect.

    Parameters
    ----------
    logits : array, shape (layers, n, ranks + 1, n_options)
        Held-out readings of :func:`layercal.directions.patched` residuals by rank, the first rank
        being 0; last those of layer L.
    answer : array of int, shape (n,)
    weights : array, shape (draws, n)
    layers, ranks : sequence of int
    n_bins : int

    Returns
    -------
    DataFrame
        ``layer``, ``rank``, ``accuracy``, ``ece``, ``share`` of the fall of ECE from the layer to L
        with ``share_low`` and ``share_high`` (95 % percentile interval), and, the same in every row
        of of a layer, ``rank_90``, the first rank with a share of at least 0.9 (infinite if none of
        those tried has), with ``rank_90_low`` and ``rank_90_high``.
    """
    rows = []
    for layer, read in zip(layers, logits, strict=True):
        confidence = softmax(read.astype(float), -1).max(-1).T
        correct = (read.argmax(-1) == answer[:, None]).T.astype(float)
        samples = [
            resampling.ece_sample(c, right, weights, n_bins)
            for c, right in zip(confidence, correct, strict=True)
        ]
        at_one = list(resampling.SCALES).index(1)
        resampled = np.stack([sample.errors()[at_one] for sample in samples])
        observed = np.array([sample.estimate for sample in samples])
        with np.errstate(divide="ignore", invalid="ignore"):  # no fall, no share of it
            share, shares = (
                (one[0] - one[:-1]) / (one[0] - one[-1]) for one in (observed, resampled)
            )
        low, high = np.quantile(shares, [0.025, 0.975], axis=-1)
        reached = _first_reached(share[:, None], ranks)[0]
        reached_low, reached_high = np.quantile(
            _first_reached(shares, ranks), [0.025, 0.975], method="inverted_cdf"
        )
        rows += [
            {
                "layer": layer,
                "rank": rank,
                "n": len(answer),
                "accuracy": correct[place].mean(),
                "ece": observed[place],
                "share": share[place],
                "share_low": low[place],
                "share_high": high[place],
                "rank_90": reached,
                "rank_90_low": reached_low,
                "rank_90_high": reached_high,
            }
            for place, rank in enumerate(ranks)
        ]
    return pd.DataFrame(rows)


def _first_reached(shares: np.ndarray, ranks: Sequence[int]) -> np.ndarray:
    """First rank of each column (ranks, draws) with a share of at least 0.9, else infinite."""
    there = np.vstack([shares >= 0.9, np.ones(shares.shape[1], bool)])
    return np.array([*ranks, np.inf])[there.argmax(0)]


def in_words(table: pd.DataFrame, layer: int) -> str:
    """Say how many dimensions bring 90 % of the fall of ECE from a layer to the last.

    Parameters
    ----------
    table : DataFrame
        From :func:`table`.
    layer : int
    """
    one = table[table["layer"] == layer]
    largest, first = one["rank"].max(), one.iloc[0]
    reached, low, high = (
        f"{rank:.0f}" if np.isfinite(rank) else f"more than {largest}"
        for rank in first[["rank_90", "rank_90_low", "rank_90_high"]]
    )
    return (
        f"Layer {layer}: {reached} principal direction(s) of h[L] - h[{layer}] bring 90 % of the "
        f"fall of ECE from there to the last layer (95 % CI {low} to {high}; n = {first['n']:.0f}; "
        f"up to {largest} were tried)."
    )
