"""Residuals at the answer position, and what is needed for ablations, in batches by length."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from layercal import InputError
from layercal.model import architecture, recording
from layercal.model.lens_model import LensModel
from layercal.model.passes import Prefix

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
    shard: int = 0,
    shards: int = 1,
    description: str = "residuals",
    option_ids: Tensor | None = None,
) -> dict[str, Tensor]:
    """Residual stream at the answer position of every prompt, at all layers.

    Batches are planned for all prompts and then divided among shards, so that what is read of a
    prompt is the same, bit for bit, in however many shards all are read.

    Parameters
    ----------
    model : LensModel
    input_ids : sequence of n token lists
    batch_tokens : int
        Token budget of a batch; halved from there on when memory runs out, which the log says.
    shard, shards : int
        Read only the batches of this shard of so many, which may be none.
    description : str
        Label of the progress bar.
    option_ids : Tensor, shape (n_options,), optional
        Token ids of the option letters, to read the stream within blocks, too.

    Returns
    -------
    dict of Tensor
        On the CPU, for the s prompts of the shard in the order of ``input_ids``: ``rows`` (s), the
        index of each there, and ``residuals`` (s, L + 1, d) in the model's dtype. If s > 0 and a
        model's blocks allow it, as :func:`layercal.model.recording.recorded` says: ``written``
        (L, 2, d) float64, the sum over prompts of what attention and MLP of each block write;
        ``neurons`` (s, m), the activations of the last block's MLP in the model's dtype; and, if
        ``option_ids`` are given and blocks have such a stream, ``mid_logits`` (s, L, n_options)
        float32, the lens's reading of the stream between attention and MLP of each block.

    Raises
    ------
    InputError
        If the model yields a value that is not finite, or a single prompt needs more memory than
        there is.
    """
    if not len(input_ids):
        raise InputError("no prompts to extract residuals from")
    batches = plan(input_ids, batch_tokens, model.takes_tails, model.border)
    ahead = _of_shard(batches, shard, shards)
    here = torch.tensor(sorted(row for batch in ahead for row in batch.rows), dtype=torch.long)
    shape = len(here), model.n_layers + 1, model.width
    found = {"rows": here, "residuals": torch.empty(shape, dtype=model.dtype)}
    reader = _Reader(model, [torch.tensor(ids) for ids in input_ids])
    with tqdm(total=len(here), desc=description, unit="prompt", disable=None) as bar:
        while ahead:
            rows = ahead[0].rows
            batch = reader.read(ahead[0])
            if batch is None:
                log.warning(
                    "out of memory at %d prompts of up to %d tokens; going on with half as many "
                    "(lower extract: batch_tokens in the config to spare the attempt)",
                    len(rows),
                    max(len(input_ids[row]) for row in rows),
                )
                ahead = [half for one in ahead for half in one.halves()]
                continue
            _refuse_nan(batch["residuals"], rows)
            written = batch.pop("written", None)
            if written is not None:
                if option_ids is not None and model.sequential:
                    batch["mid_logits"] = _mid_logits(
                        model, batch["residuals"], written[:, :, 0], option_ids
                    )
                # in float64: back in float32, a sum over all prompts does not depend on its order
                found["written"] = found.get("written", 0) + written.sum(0).double()
            places = torch.searchsorted(here, torch.tensor(rows))
            for name, one in batch.items():
                if name not in found:
                    dtype = torch.float32 if name == "mid_logits" else model.dtype
                    found[name] = torch.empty(len(here), *one.shape[1:], dtype=dtype)
                found[name][places] = one.to(found[name].dtype)
            bar.update(len(rows))
            del ahead[0]
    return found


@torch.inference_mode()
def _mid_logits(
    model: LensModel, residuals: Tensor, attention: Tensor, option_ids: Tensor
) -> Tensor:
    """Option logits (batch, L, n_options) of the stream that the MLP of each block reads."""
    scale = torch.tensor([parts.scale for parts in model.parts])
    between = residuals[:, :-1].float() + scale[:, None] * attention
    return model.option_logits(between, option_ids).cpu()


@dataclass
class Batch:
    """Prompts that run in one pass.

    Attributes
    ----------
    rows : list of int
    shared : int
        Tokens with which all of them begin alike, which run once for all; 0 if none are shared.
    """

    rows: list[int]
    shared: int = 0

    def halves(self) -> list[Batch]:
        """Both halves, or itself if it is of one row."""
        middle = (len(self.rows) + 1) // 2
        return [replace(self, rows=h) for h in (self.rows[:middle], self.rows[middle:]) if h]


def plan(
    input_ids: Sequence[Sequence[int]],
    batch_tokens: int,
    takes_tails: Callable[[int], bool],
    border: int | None = None,
) -> list[Batch]:
    """Divide prompts into batches that stay within a token budget.

    Prompts that begin alike for at least half of their length, as those after the same shots and
    the rotations of one question do, share that beginning. The others are padded, those of similar
    length together.

    Parameters
    ----------
    input_ids : sequence of token lists
    batch_tokens : int
        Upper bound of tokens in a pass, padding included and a shared beginning excluded; a single
        longer prompt makes a batch of its own.
    takes_tails : function (tokens) -> bool
        Whether prompts of up to so many tokens can share a beginning.
    border : int, optional
        Prompts of more tokens than this run with other rotary frequencies, from their first token
        on: they share no pass with shorter ones, and no beginning that is not itself longer.
    """
    longer = [row for row, ids in enumerate(input_ids) if border is not None and len(ids) > border]
    others = sorted({*range(len(input_ids))} - {*longer})
    return [
        *_plan_side(input_ids, longer, batch_tokens, takes_tails, least=border or 0),
        *_plan_side(input_ids, others, batch_tokens, takes_tails),
    ]


def _plan_side(
    input_ids: Sequence[Sequence[int]],
    rows: Sequence[int],
    batch_tokens: int,
    takes_tails: Callable[[int], bool],
    least: int = 0,
) -> list[Batch]:
    """:func:`plan` for some rows, which share beginnings of ``least`` tokens or more."""
    batches, alone = [], []
    for group, shared in _alike(input_ids, rows):
        longest = max(len(input_ids[row]) for row in group)
        if len(group) == 1 or shared < least or not takes_tails(longest):
            alone += group
            continue
        batch: list[int] = []
        tokens = 0
        for row in group:
            tail = len(input_ids[row]) - shared
            if batch and tokens + tail > batch_tokens:
                batches.append(Batch(batch, shared))
                batch, tokens = [], 0
            batch, tokens = [*batch, row], tokens + tail
        batches.append(Batch(batch, shared))
    lengths = [len(input_ids[row]) for row in alone]
    padded = [[alone[i] for i in batch] for batch in length_batches(lengths, batch_tokens)]
    return [*batches, *(Batch(rows) for rows in padded)]


def _of_shard(batches: Sequence[Batch], shard: int, shards: int) -> list[Batch]:
    """Batches of one shard, of about as many prompts as of the others.

    Those of shared beginnings are neighbours, so that beginnings stay shared; the others, which
    come longest first, are dealt out in turn, so that no shard has all long ones.
    """
    sharing = [batch for batch in batches if batch.shared]
    sizes = [len(batch.rows) for batch in sharing]
    middles = [end - size / 2 for end, size in zip(accumulate(sizes), sizes, strict=True)]
    neighbours = [
        batch
        for batch, middle in zip(sharing, middles, strict=True)
        if int(middle * shards / sum(sizes)) == shard
    ]
    return neighbours + [batch for batch in batches if not batch.shared][shard::shards]


def _alike(
    input_ids: Sequence[Sequence[int]], rows: Sequence[int]
) -> Iterator[tuple[list[int], int]]:
    """Yield groups of rows and the number of tokens with which all rows of a group begin.

    At least one token of each row is left over.
    """
    order = sorted(rows, key=lambda row: list(input_ids[row]))
    group: list[int] = []
    shared = longest = 0
    for row in order:
        ids = input_ids[row]
        here = min(_common(input_ids[group[-1]], ids), len(ids) - 1, shared) if group else 0
        if 2 * here >= max(longest, len(ids)):
            group, shared, longest = [*group, row], here, max(longest, len(ids))
        else:
            if group:
                yield group, shared
            group, shared, longest = [row], len(ids) - 1, len(ids)
    if group:
        yield group, shared


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of tokens with which both begin."""
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


class _Reader:
    """Runs batches; the last shared beginning stays cached."""

    def __init__(self, model: LensModel, prompts: list[Tensor]):
        self.model, self.prompts = model, prompts
        self.beginning: tuple[Tensor, Prefix] | None = None

    def read(self, batch: Batch) -> dict[str, Tensor] | None:
        """Residuals and recordings of one batch, or None if it does not fit into memory."""
        prompts = [self.prompts[row] for row in batch.rows]
        try:
            if batch.shared:
                prefix = self._prefix(prompts[0][: batch.shared + 1])
                tails = [one[batch.shared :] for one in prompts]
                with recording.recorded(self.model, architecture.last_of(tails)) as found:
                    h = self.model.residuals_after(prefix, tails).cpu()
            else:
                padded = pad_sequence(prompts, batch_first=True)
                mask = pad_sequence([torch.ones_like(one) for one in prompts], batch_first=True)
                with recording.recorded(self.model, architecture.answer_places(mask)) as found:
                    h = self.model.residuals(padded, mask).cpu()
            return {"residuals": h, **found}
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            if len(prompts) == 1:
                raise InputError(
                    f"out of memory: a single prompt of {len(prompts[0])} tokens does not fit; use "
                    "fewer shots, extract: dtype: bfloat16 or quantize, or a larger machine"
                ) from error
        return None

    def _prefix(self, tokens: Tensor) -> Prefix:
        """The beginning of a prompt, all but its last token cached; kept until another is asked."""
        if self.beginning is None or not torch.equal(self.beginning[0], tokens[:-1]):
            self.beginning = tokens[:-1], self.model.prefix(tokens)
        return self.beginning[1]


def _is_out_of_memory(error: Exception) -> bool:
    """Tell whether memory ran out; on a CPU torch says so only in its message."""
    said = str(error)
    return isinstance(error, MemoryError) or "out of memory" in said or "allocate memory" in said


def _refuse_nan(h: Tensor, rows: list[int]) -> None:
    broken = ~h.isfinite().all(-1)
    if broken.any():
        row, layer = broken.nonzero()[0].tolist()
        raise InputError(
            f"the model yields NaN or Inf: prompt {rows[row]}, first at layer {layer}; nothing was "
            "written. Try extract: dtype: float32, and check the weights if that was used"
        )
