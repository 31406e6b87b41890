"""Where in a block the correction is: what attention adds to the stream, and what MLP adds then.

Between its attention and its MLP a block has a stream, too, which the lens can read. So each step
of NLL from layer to layer, by knowledge and by scale, is divided between the two.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from layercal.metrics import paired
from layercal.metrics.readings import Readings
from layercal.metrics.recalibration import (
    KNOWLEDGE,
    LEVEL,
    SCALE,
    TEMPERATURE,
    cross_tempered,
    nll_falls,
    temperature_interval,
)
from layercal.results import PARTS

COLUMNS = ["first_block", "last_block", "part", "metric", "value", "ci_low", "ci_high"]
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
        the blocks above the peak: the sum of their steps, each with its own interval.
    """
    falls = nll_falls(read, cross_tempered(read.logits, read.answer, fold))
    level = 1 - LEVEL / (len(read.logits) - 1)
    fitted = temperature_interval(read.logits, read.answer, read.cluster)
    rows = []
    for place in range(len(read.logits) - 1):
        block, part = place // 2 + 1, PARTS[place % 2]
        for metric, fall in falls.items():
            step = paired.mean_change(fall[place], read.cluster)
            rows.append((block, block, part, metric, step.value, *step.interval(level)))
        rows.append((block, block, part, TEMPERATURE, *(ends[place + 1] for ends in fitted)))
    rows += _totals(falls, read.cluster, peak)
    return pd.DataFrame(rows, columns=COLUMNS)


def _totals(falls: dict[str, np.ndarray], cluster: np.ndarray, peak: int) -> Iterator[tuple]:
    last = len(falls[SCALE]) // 2
    if peak == last:
        return
    for metric in (KNOWLEDGE, SCALE):
        for place, part in enumerate(PARTS):
            total = paired.mean_change(falls[metric][2 * peak + place :: 2].sum(0), cluster)
            yield (peak + 1, last, part, metric, total.value, *total.interval())
