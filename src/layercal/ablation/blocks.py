"""What each block's attention and MLP do for the final answer, by mean ablation.

One part of one block gives, at the answer position, its mean over a set of questions; the rest of
the network runs on.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import Tensor

from layercal import InputError
from layercal.model import LensModel, Prefix, architecture
from layercal.model.recording import part_modules
from layercal.results import PARTS


@torch.inference_mode()
def without_parts(model: LensModel, prefix: Prefix, lowest: int, means: Tensor) -> Tensor:
    """Final residuals had one part of one block given its mean at the answer position.

    Every (block, part) is one row of a single pass, in which the blocks above run on. Read the rows
    with a live final norm by ``model.option_logits(rows, option_ids)``, with a frozen one by
    ``model.option_logits(rows, option_ids, frozen_at=prefix.residuals[-1])``.

    Parameters
    ----------
    model : LensModel
    prefix : Prefix
    lowest : int
        First block ablated, 1 to L.
    means : Tensor, shape (L - lowest + 1, 2, d)
        Means over questions of what :func:`layercal.model.recording.recorded` gives.

    Returns
    -------
    Tensor, shape (L - lowest + 1, 2, d)
        ``h[L]`` under each ablation, float32.

    Raises
    ------
    InputError
        If the parts of a block cannot be told, or the means are not those of these blocks.
    """
    modules = part_modules(model, lowest)
    expected = (len(modules) // len(PARTS), len(PARTS), model.width)
    if means.shape != expected:
        raise InputError(
            f"means: expected shape {expected} for blocks {lowest} to {model.n_layers}, got "
            f"{tuple(means.shape)}"
        )
    run = model.pass_of(prefix)
    with ExitStack() as hooks:
        for row, (module, mean) in enumerate(zip(modules, means.flatten(0, 1), strict=True)):
            hooks.enter_context(architecture.hook(module, _replacing(row, mean)))
        # the last row runs unchanged: rounding, which differs from run to run, is no effect
        found = run(prefix, lowest - 1, prefix.residuals[lowest - 1].expand(len(modules) + 1, -1))
    found = found.float()
    return (found[:-1] + (prefix.residuals[-1].float() - found[-1])).reshape(expected)


def _replacing(row: int, mean: Tensor) -> Callable[[Tensor], Tensor | None]:
    """A hook that gives ``mean`` in place of one row, counted over all the calls of a pass."""
    passed = 0

    def replace(hidden: Tensor) -> Tensor | None:
        nonlocal passed
        rows = hidden.reshape(-1, hidden.shape[-1])
        place, passed = row - passed, passed + len(rows)
        if not 0 <= place < len(rows):
            return None
        rows = rows.clone()
        rows[place] = mean.to(rows)
        return rows.reshape(hidden.shape)

    return replace
