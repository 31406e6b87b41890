"""What each block's attention and MLP do for the final answer, by mean ablation.

One part of one block gives, at the answer position, its mean over a set of questions; the rest of
the network runs on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from layercal import InputError, structure
from layercal.model import LensModel, Prefix

PARTS = ("attention", "mlp")


@torch.inference_mode()
def written(model: LensModel, prefix: Prefix, lowest: int = 1) -> Tensor:
    """What attention and MLP of each block give at the answer position.

    Parameters
    ----------
    model : LensModel
    prefix : Prefix
        The prompt, run once.
    lowest : int
        First block, 1 to L.

    Returns
    -------
    Tensor, shape (L - lowest + 1, 2, d)
        float32; in the order of ``PARTS``, before any scaling of updates by the model itself.

    Raises
    ------
    InputError
        If the parts of a block cannot be told.
    """
    modules = _part_modules(model, lowest)
    run = model.pass_of(prefix)
    given: dict[nn.Module, Tensor] = {}

    def keeper(module: nn.Module):
        def keep(hidden: Tensor):
            # copied, since a block may add in place
            given[module] = hidden.reshape(-1).to(model.device, torch.float32, copy=True)

        return keep

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(structure.hook(module, keeper(module)))
        run(prefix, lowest - 1, prefix.residuals[lowest - 1][None])
    return torch.stack([given[module] for module in modules]).reshape(-1, len(PARTS), model.width)


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
        Means over questions of what :func:`written` gives.

    Returns
    -------
    Tensor, shape (L - lowest + 1, 2, d)
        ``h[L]`` under each ablation, float32.

    Raises
    ------
    InputError
        If the parts of a block cannot be told, or the means are not those of these blocks.
    """
    modules = _part_modules(model, lowest)
    expected = (len(modules) // len(PARTS), len(PARTS), model.width)
    if means.shape != expected:
        raise InputError(
            f"means: expected shape {expected} for blocks {lowest} to {model.n_layers}, got "
            f"{tuple(means.shape)}"
        )
    run = model.pass_of(prefix)
    with ExitStack() as hooks:
        for row, (module, mean) in enumerate(zip(modules, means.flatten(0, 1), strict=True)):
            hooks.enter_context(structure.hook(module, _replacing(row, mean)))
        # the last row runs unchanged: rounding, which differs from run to run, is no effect
        found = run(prefix, lowest - 1, prefix.residuals[lowest - 1].expand(len(modules) + 1, -1))
    found = found.float()
    return (found[:-1] + (prefix.residuals[-1].float() - found[-1])).reshape(expected)


@contextmanager
def recorded(model: LensModel, places: Tensor) -> Iterator[dict[str, Tensor]]:
    """Record what is needed for ablations while a batch runs, at its answer tokens.

    Parameters
    ----------
    model : LensModel
    places : Tensor, shape (batch,)
        Where each prompt's answer token is, counted over all tokens of the batch.

    Yields
    ------
    dict of Tensor
        Filled when the block ends: ``written`` (batch, L, 2, d), as :func:`written` gives it, and
        ``neurons`` (batch, m), the activations of the last block's MLP, both float32 on the CPU.
        Empty where the parts of a block cannot be told, without ``neurons`` where its neurons
        cannot.
    """
    found: dict[str, Tensor] = {}
    try:
        modules = _part_modules(model, 1)
    except InputError:
        yield found
        return
    given: dict[nn.Module | str, Tensor] = {}

    def keeper(name: nn.Module | str):
        def keep(hidden: Tensor):
            hidden = hidden.reshape(-1, hidden.shape[-1])  # some blocks flatten the tokens
            given[name] = hidden[places.to(hidden.device)].float().cpu()

        return keep

    neurons = model.parts[-1].projection
    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(structure.hook(module, keeper(module)))
        if neurons is not None:
            hooks.enter_context(structure.hook(neurons, keeper("neurons"), before=True))
        yield found
    if neurons is not None:
        found["neurons"] = given.pop("neurons")
    found["written"] = torch.stack([given[module] for module in modules], 1).unflatten(
        1, (-1, len(PARTS))
    )


def _part_modules(model: LensModel, lowest: int) -> list[nn.Module]:
    """Attention and MLP of each block from ``lowest`` on, in turn."""
    if not 1 <= lowest <= model.n_layers:
        raise InputError(f"lowest: expected a block from 1 to {model.n_layers}, got {lowest}")
    return [getattr(parts, part) for parts in model.parts[lowest - 1 :] for part in PARTS]


def _replacing(row: int, mean: Tensor):
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
