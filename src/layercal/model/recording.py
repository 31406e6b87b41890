"""What each block's attention and MLP give at the answer position, recorded while a batch runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from layercal import InputError
from layercal.model import architecture
from layercal.model.lens_model import LensModel
from layercal.results import PARTS


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
        Filled when the block ends, float32 on the CPU: ``written`` (batch, L, 2, d), what attention
        and MLP (``PARTS``) of each block give, before any scaling of updates by the model itself,
        and ``neurons`` (batch, m), the activations of the last block's MLP. Empty where the parts
        of a block cannot be told, without ``neurons`` where its neurons cannot.
    """
    found: dict[str, Tensor] = {}
    try:
        modules = part_modules(model, 1)
    except InputError:
        yield found
        return
    given: dict[nn.Module | str, Tensor] = {}

    def keeper(name: nn.Module | str) -> Callable[[Tensor], None]:
        def keep(hidden: Tensor) -> None:
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
