"""Where in a block the correction is: what attention adds to the stream, and what MLP adds then.

Between its attention and its MLP a block has a stream, too, which the lens can read. So each step
of NLL from layer to layer, by knowledge and by scale, is divided between the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import itemgetter

import numpy as np
import pandas as pd

from layercal.metrics import paired
from layercal.metrics.readings import Readings
from layercal.metrics.recalibration import (
    TEMPERATURE,
    cross_tempered,
    nll_falls,
    steps,
    temperature_interval,
)
from layercal.results import PARTS

ENDS = ["value", "ci_low", "ci_high"]
COLUMNS = ["first_block", "last_block", "part", "metric", *ENDS]
# the table of a model whose blocks have no stream between attention and MLP
NOTHING = pd.DataFrame({name: pd.Series(dtype=float) for name in COLUMNS})


def with_middles(layers: Readings, middles: Readings) -> Readings:
    """Readings of layers 0 to L with those of the middle of each block between them.

    Parameters
    ----------
    layers : Readings
        ``logits`` of shape (L + 1, n, k).
    middles : Readings
        The same questions, (L, n, k).

    Returns
    -------
    Readings
        (2 L + 1, n, k).
    """
    logits = np.empty((2 * len(middles.logits) + 1, *layers.logits.shape[1:]))
    logits[::2], logits[1::2] = layers.logits, middles.logits
    return Readings(logits, layers.answer, {}, layers.cluster)


def table(read: Readings, fold: np.ndarray, peak: int) -> pd.DataFrame:
    """Steps of NLL by attention and MLP of each block, and of all blocks above the peak together.

    Parameters
    ----------
    read : Readings
        From :func:`with_middles`.
    fold : array of int, shape (n,)
        Temperatures of each fold are fitted on the others.
    peak : int
        Layer of the peak of ECE.

    Returns
    -------
    DataFrame
        ``first_block``, ``last_block``, ``part``, ``metric``, ``value``, ``ci_low``, ``ci_high``.
        Of a block: ``knowledge_step`` and ``scale_step`` as of
        :func:`layercal.metrics.recalibration.steps`, their intervals for all parts at once
        (Bonferroni), and the ``temperature`` that fits the stream after the part, with its own. Of
        the blocks above the peak, if there are several: the sum of their steps, each with its own
        interval.
    """
    tempered = cross_tempered(read.logits, read.answer, fold)
    fitted = np.stack(temperature_interval(read.logits, read.answer, read.cluster), -1)
    found = [
        (row["layer"], row["metric"], *(row[end] for end in ENDS)) for row in steps(read, tempered)
    ]
    found += [(place, TEMPERATURE, *ends) for place, ends in enumerate(fitted) if place]
    rows = [_single(*row) for row in sorted(found, key=itemgetter(0))]
    rows += _totals(nll_falls(read, tempered), read.cluster, peak)
    return pd.DataFrame(rows, columns=COLUMNS)


def _single(place: int, metric: str, *ends: float) -> tuple:
    """Row of the part that ends at a place among layers and middles."""
    block, part = (place + 1) // 2, PARTS[(place - 1) % 2]
    return block, block, part, metric, *ends


def _totals(falls: dict[str, np.ndarray], cluster: np.ndarray, peak: int) -> Iterator[tuple]:
    for metric, by_part in falls.items():
        last = len(by_part) // 2
        for place, part in enumerate(PARTS if peak + 1 < last else ()):
            total = paired.mean_change(by_part[2 * peak + place :: 2].sum(0), cluster)
            yield peak + 1, last, part, metric, total.value, *total.interval()
