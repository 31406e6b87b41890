"""What each block's attention and MLP give at the answer position, recorded while a batch runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from layercal import InputError
from layercal.model import architecture
from layercal.model.lens_model import LensModel, Prefix

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
    modules = part_modules(model, lowest)
    run = model.pass_of(prefix)
    given: dict[nn.Module, Tensor] = {}

    def keeper(module: nn.Module):
        def keep(hidden: Tensor):
            # copied, since a block may add in place
            given[module] = hidden.reshape(-1).to(model.device, torch.float32, copy=True)

        return keep

    with ExitStack() as hooks:
        for module in modules:
            hooks.enter_context(architecture.hook(module, keeper(module)))
        run(prefix, lowest - 1, prefix.residuals[lowest - 1][None])
    return torch.stack([given[module] for module in modules]).reshape(-1, len(PARTS), model.width)


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
        modules = part_modules(model, 1)
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
            hooks.enter_context(architecture.hook(module, keeper(module)))
        if neurons is not None:
            hooks.enter_context(architecture.hook(neurons, keeper("neurons"), before=True))
        yield found
    if neurons is not None:
        found["neurons"] = given.pop("neurons")
    found["written"] = torch.stack([given[module] for module in modules], 1).unflatten(
        1, (-1, len(PARTS))
    )


def part_modules(model: LensModel, lowest: int) -> list[nn.Module]:
    """Attention and MLP of each block from ``lowest`` on, in turn."""
    if not 1 <= lowest <= model.n_layers:
        raise InputError(f"lowest: expected a block from 1 to {model.n_layers}, got {lowest}")
    return [getattr(parts, part) for parts in model.parts[lowest - 1 :] for part in PARTS]
