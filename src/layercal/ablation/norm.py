"""How much of a layer's miscalibration the final norm's scale alone carries.

The final norm divides a stream by its own scale. Each layer is read with the scale of a layer above
in its place (a mediation analysis; Vig et al. 2020, arXiv 2004.12265): what that brings is what the
growth of the stream alone would bring, its direction left as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd
from torch import Tensor
from tqdm import tqdm

from layercal.metrics import paired
from layercal.metrics.scoring import Scoring
from layercal.model import LensModel
from layercal.model.lens import read_options
from layercal.results import Residuals


def patched(
    model: LensModel, stream: Residuals, option_ids: Tensor, n_options: Tensor
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Read each layer with the norm's scale of itself and of every layer above.

    Parameters
    ----------
    model : LensModel
    stream : Residuals
        (n, L + 1, d).
    option_ids : Tensor, shape (k,)
        Token ids of the option letters.
    n_options : Tensor of int, shape (n,)
        -inf stands for options that a question has not.

    Yields
    ------
    layer, norm_layer : int
    logits : array, shape (n, k)
    """
    layers = range(stream.shape[1])
    for layer in tqdm(layers, desc="norm", unit="layer", disable=None):
        h = stream[:, layer]
        for norm_layer in layers[layer:]:
            of_norm = stream[:, norm_layer]
            yield layer, norm_layer, read_options(model, h, option_ids, n_options, of_norm)


def table(scoring: Scoring, read: Iterator[tuple[int, int, np.ndarray]]) -> pd.DataFrame:
    """NLL and ECE of each layer under the scale of each layer above.

    Parameters
    ----------
    scoring : Scoring
    read : iterator of (layer, norm_layer, logits)
        From :func:`patched`.

    Returns
    -------
    DataFrame
        ``layer``, ``norm_layer``, ``nll``, ``ece``; ``nll_gain`` over the layer's own scale, with
        Student's 95 % interval, and ``share``, what it is of the layer's excess of NLL over the
        last layer, with Fieller's.
    """
    nll: dict[tuple[int, int], np.ndarray] = {}
    rows: list[dict[str, float]] = []
    for layer, norm_layer, logits in read:
        nll[layer, norm_layer] = paired.losses(logits, scoring.answer)["nll"]
        rows.append({"layer": layer, "norm_layer": norm_layer, "ece": scoring.ece(logits)})
    final = max(nll)
    for row in rows:
        layer, norm_layer = int(row["layer"]), int(row["norm_layer"])
        patch, before = nll[layer, norm_layer], nll[layer, layer]
        gain = paired.mean_change(before - patch, scoring.cluster)
        low, high = gain.interval()
        share = paired.share(before - patch, before - nll[final], scoring.cluster)
        row |= {"nll": patch.mean(), "nll_gain": gain.value}
        row |= {"nll_gain_low": low, "nll_gain_high": high}
        row |= dict(zip(("share", "share_low", "share_high"), share, strict=True))
    return pd.DataFrame(rows)
