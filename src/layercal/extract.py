"""Residuals at the answer position, and what is needed for ablations, in batches by length."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from layercal import InputError, attribution
from layercal.model import LensModel

log = logging.getLogger("layercal")


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


def read(
    model: LensModel,
    input_ids: Sequence[Sequence[int]],
    batch_tokens: int = 2048,
    description: str = "residuals",
) -> dict[str, Tensor]:
    """Residual stream at the answer position of every prompt, at all layers.

    Parameters
    ----------
    model : LensModel
    input_ids : sequence of n token lists
    batch_tokens : int
        Token budget of a batch; halved from there on when memory runs out, which the log says.
    description : str
        Label of the progress bar.

    Returns
    -------
    dict of Tensor
        On the CPU, in the order of ``input_ids``. ``residuals`` (n, L + 1, d) in the model's dtype.
        Where a model's blocks allow it, as :func:`layercal.attribution.recorded` says:
        ``written`` (L, 2, d), the sum over prompts of what attention and MLP of each block write,
        and ``neurons`` (n, m), the activations of the last block's MLP in the model's dtype.

    Raises
    ------
    InputError
        If the model yields a value that is not finite, or a single prompt needs more memory than
        there is.
    """
    found: dict[str, Tensor] = {}
    ahead = list(length_batches([len(ids) for ids in input_ids], batch_tokens))
    with tqdm(total=len(input_ids), desc=description, unit="prompt", disable=None) as bar:
        while ahead:
            rows = ahead[0]
            batch = _read(model, [torch.tensor(input_ids[row]) for row in rows])
            if batch is None:
                log.warning(
                    "out of memory at %d prompts of up to %d tokens; going on with half as many "
                    "(lower extract: batch_tokens in the config to spare the attempt)",
                    len(rows),
                    len(input_ids[rows[0]]),
                )
                ahead = [half for rows in ahead for half in _halves(rows)]
                continue
            _refuse_nan(batch["residuals"], rows)
            written = batch.pop("written", None)
            if written is not None:
                found["written"] = found.get("written", 0) + written.sum(0)
            for name, one in batch.items():
                if name not in found:
                    found[name] = torch.empty(len(input_ids), *one.shape[1:], dtype=model.dtype)
                found[name][rows] = one.to(model.dtype)
            bar.update(len(rows))
            del ahead[0]
    if not found:
        raise InputError("no prompts to extract residuals from")
    return found


def _read(model: LensModel, tokens: list[Tensor]) -> dict[str, Tensor] | None:
    """Residuals and recordings of one padded batch, or None if it does not fit into memory."""
    padded = pad_sequence(tokens, batch_first=True)
    mask = pad_sequence([torch.ones_like(one) for one in tokens], batch_first=True)
    try:
        with attribution.recorded(model, mask) as found:
            h = model.residuals(padded, mask).cpu()
        return {"residuals": h, **found}
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        if len(tokens) == 1:
            raise InputError(
                f"out of memory: a single prompt of {len(tokens[0])} tokens does not fit; use "
                "fewer shots, extract: dtype: bfloat16 or quantize, or a larger machine"
            ) from error
    return None


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory ran out; on a CPU torch says so only in its message."""
    said = str(error)
    return isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said


def _refuse_nan(h: Tensor, rows: list[int]) -> None:
    broken = ~h.isfinite().all(-1)
    if broken.any():
        row, layer = broken.nonzero()[0].tolist()
        raise InputError(
            f"the model yields NaN or Inf: prompt {rows[row]} of the shard, first at layer "
            f"{layer}; nothing was written. Try extract: dtype: float32, and check the weights if "
            "that was used"
        )


def _halves(rows: list[int]) -> list[list[int]]:
    """Both halves of a batch, or the batch if it is of one row."""
    middle = (len(rows) + 1) // 2
    return [half for half in (rows[:middle], rows[middle:]) if half]
