"""The unembedding as the residual stream sees it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from tqdm import tqdm

from layercal.model.lens_model import LensModel


def fold_rows(model: LensModel, rows: Tensor) -> Tensor:
    """Rows of the head as the normalised residual stream sees them.

    The final norm's gain, and the projection that some models put after it, are folded in; where
    the norm centres, the mean over the width is out.

    Parameters
    ----------
    model : LensModel
    rows : Tensor, shape (rows, width of the head)
        float64, on the CPU, since not every accelerator has float64.

    Returns
    -------
    Tensor, shape (rows, d)
    """
    gain, _, centred = model.norm_map
    projection = model.readout.projection(model.width)
    if projection is not None:
        rows = rows @ projection.cpu().double()
    rows = rows * gain.cpu().double()
    return rows - rows.mean(-1, keepdim=True) if centred else rows


def effective_rows(model: LensModel, label: str, chunk: int = 4096) -> Iterator[Tensor]:
    """Rows of the effective unembedding, a chunk of the vocabulary at a time; (chunk, d)."""
    weight = model.head.weight.detach()
    parts = weight.split(chunk)
    total = sum(part.cpu().double().sum(0) for part in parts)
    mean = fold_rows(model, total[None] / len(weight))
    for part in tqdm(parts, desc=label, unit="chunk", disable=None):
        yield fold_rows(model, part.cpu().double()) - mean
