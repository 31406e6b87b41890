"""Residuals at the answer position, in batches of similar length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from layercal import InputError
from layercal.model import LensModel


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Group rows of similar length so that each padded batch stays within a token budget.

    Parameters
    ----------
    lengths : sequence of int
        Tokens per row.
    batch_tokens : int
        Upper bound of rows x longest row; a single longer row makes a batch of its own.

    Yields
    ------
    list of int
        Row indices, longest rows first, so that a batch too large for memory shows at once.
    """
    batch: list[int] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def residuals(
    model: LensModel,
    input_ids: Sequence[Sequence[int]],
    batch_tokens: int = 2048,
    description: str = "residuals",
) -> Tensor:
    """Residual stream at the answer position of every prompt, at all layers.

    Parameters
    ----------
    model : LensModel
    input_ids : sequence of n token lists
    batch_tokens : int
        Token budget of a batch.
    description : str
        Label of the progress bar.

    Returns
    -------
    Tensor, shape (n, L + 1, d)
        On the CPU, in the model's dtype, in the order of ``input_ids``.

    Raises
    ------
    InputError
        If the model yields a value that is not finite.
    """
    found: Tensor | None = None
    with tqdm(total=len(input_ids), desc=description, unit="prompt", disable=None) as bar:
        for rows in length_batches([len(ids) for ids in input_ids], batch_tokens):
            tokens = [torch.tensor(input_ids[row]) for row in rows]
            padded = pad_sequence(tokens, batch_first=True)
            mask = pad_sequence([torch.ones_like(one) for one in tokens], batch_first=True)
            h = model.residuals(padded, mask).cpu()
            if not torch.isfinite(h).all():
                raise InputError(
                    f"the model yields NaN or Inf in rows {rows}; try extract: dtype: float32"
                )
            if found is None:
                found = torch.empty(len(input_ids), *h.shape[1:], dtype=h.dtype)
            found[rows] = h
            bar.update(len(rows))
    if found is None:
        raise InputError("no prompts to extract residuals from")
    return found
