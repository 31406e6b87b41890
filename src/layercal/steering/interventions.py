"""Changing the residual stream by a direction, and what it does.

The paper's intervention adds ``eta * v`` at layer l, with ``eta = alpha * mean ||h[l]||``, so that
alpha means the same in every model. Three modes: ``lens`` changes the answer position and reads at
the steered layer itself; ``through-network`` runs the blocks above on it and reads at layer L;
``all-positions`` does so with the stream of every token of the prompt changed alike. Each is read
with the final norm live, and with its scale frozen at that of the unsteered stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from layercal.model import LensModel, Prefix
from layercal.steering.fitted import Fitted, Variant
from layercal.steering.steered import MODES, Steered


def add(h: Tensor, basis: Tensor, eta: Tensor, alphas: Tensor) -> Tensor:
    """Add ``eta`` times a direction.

    Parameters
    ----------
    h : Tensor, shape (..., d)
    basis : Tensor, shape (F, r, d)
        Orthonormal rows of F fits; a direction is a basis of one.
    eta : Tensor, shape (F, alphas)
        Scale in units of the stream.
    alphas : Tensor, shape (alphas,)
        Scale in mean residual norms.

    Returns
    -------
    Tensor, shape (..., F, alphas, d)
    """
    return h[..., None, None, :] + eta[..., None] * basis[:, None, 0]


def subtract(h: Tensor, basis: Tensor, eta: Tensor, alphas: Tensor) -> Tensor:
    """Control: add the negated direction; parameters as in :func:`add`."""
    return add(h, basis, -eta, alphas)


def rotate(h: Tensor, basis: Tensor, eta: Tensor, alphas: Tensor) -> Tensor:
    """Control: turn towards the direction, keeping the norm; parameters as in :func:`add`.

    The final norm takes scale out, so that read at the steered layer this is :func:`add`.
    """
    moved = add(h, basis, eta, alphas)
    length = h.norm(dim=-1)[..., None, None, None]
    return moved * (length / moved.norm(dim=-1, keepdim=True))


def rescale(h: Tensor, basis: Tensor, eta: Tensor, alphas: Tensor) -> Tensor:
    """Multiply the part in a subspace by ``1 + alpha``; -1 ablates it. Parameters as in add."""
    h = h[..., None, None, :]
    return h + alphas[:, None] * (h @ basis.mT @ basis)


INTERVENTIONS: dict[str, Callable] = {
    "add": add,
    "subtract": subtract,
    "rotate": rotate,
    "rescale": rescale,
}


@torch.inference_mode()
def final_residuals(
    model: LensModel, prefix: Prefix, layer: int, changed: Tensor, mode: str, chunk: int = 512
) -> Tensor:
    """What is read of one prompt under many changes of its residual stream.

    Parameters
    ----------
    model : LensModel
    prefix : Prefix
        The prompt, run once.
    layer : int
        Where the stream is changed.
    changed : Tensor, shape (S, d), or (S, tokens, d) for all-positions
        Residuals at ``layer``, one row a setting.
    mode : {"lens", "through-network", "all-positions"}
    chunk : int
        Tokens that go through the network in one pass, but at least one setting; bounds memory.

    Returns
    -------
    Tensor, shape (S, d)
        Residuals at the layer that the mode reads; float32, on the CPU.
    """
    if mode == "lens":
        return changed.float().cpu()
    rows_at_once = max(chunk // changed.shape[1:-1].numel(), 1)
    # filled in place: results kept one by one would scatter over the freed memory between passes
    found = torch.empty(len(changed), model.width)
    for rows in torch.arange(len(changed)).split(rows_at_once):
        part = changed[rows].to(model.device)
        if mode == "through-network":
            found[rows] = model.continue_from(prefix, layer, part).float().cpu()
        else:  # the blocks up to the layer have run once, for all
            found[rows] = model.continue_all(prefix.input_ids[0], layer, part).float().cpu()
    return found


@torch.inference_mode()
def steered_logits(
    model: LensModel,
    prefix: Prefix,
    layer: int,
    changed: Tensor,
    option_ids: Tensor,
    mode: str,
    chunk: int = 512,
) -> tuple[Tensor, Tensor]:
    """Option logits of one prompt under many changes; parameters as in :func:`final_residuals`.

    Returns
    -------
    live, frozen : Tensor, shape (S, n_options)
        With the final norm live, and with its scale frozen at that of the unsteered stream.
    """
    unsteered = prefix.residuals[MODES[mode].read(layer, model.n_layers)]
    final = final_residuals(model, prefix, layer, changed, mode, chunk)
    live = model.option_logits(final, option_ids).cpu()
    return live, model.option_logits(final, option_ids, frozen_at=unsteered).cpu()


def changes(
    h: Tensor,
    steered: Sequence[Variant],
    controls: Tensor,
    norms: Tensor,
    alphas: Tensor,
    own: int,
    place: int,
) -> Iterator[Tensor]:
    """All changed residuals of one question at one layer, some at a time.

    Parameters
    ----------
    h : Tensor, shape (..., d)
    steered : sequence of Variant
    controls : Tensor, shape (R, d)
    norms : Tensor, shape (K, K)
        Mean residual norm at the layer, as each fit saw it.
    alphas : Tensor, shape (alphas,)
    own : int
        The question's fold.
    place : int
        Of the layer among those swept.

    Yields
    ------
    Tensor, shape (..., settings, d)
        For each variant the fits for the K outer folds, each at all scales; then the controls; last
        ``h`` itself.
    """
    eta = norms[:, own, None] * alphas
    for one in steered:
        moved = INTERVENTIONS[one.direction.intervention](h, one.basis(own, place), eta, alphas)
        yield moved.flatten(-3, -2)
    for some in controls.split(len(norms)):
        yield add(h, some[:, None], eta[own].expand(len(some), -1), alphas).flatten(-3, -2)
    yield h[..., None, :]


def sweep_prompt(
    model: LensModel,
    prefix: Prefix,
    option_ids: Tensor,
    fitted: Fitted,
    own: int,
    alphas: Sequence[float],
    modes: Sequence[str],
    chunk: int = 512,
) -> dict[str, Steered[Tensor]]:
    """Sweep one prompt over variants, controls, layers and scales.

    The residuals of the prefix are what the sweep starts from and what scale 0 reads, so that they
    may come from another run of the same prompt: what the blocks above make of a change is added to
    them, and rounding, which differs from run to run, is not taken for an effect.

    Parameters
    ----------
    model : LensModel
    prefix : Prefix
        The prompt; where a mode needs it to run and it has not, it is run here.
    option_ids : Tensor, shape (n_options,)
    fitted : Fitted
    own : int
        The question's fold.
    alphas : sequence of float
    modes : sequence of {"lens", "through-network", "all-positions"}
    chunk : int
        Tokens that go through the network in one pass; bounds memory.

    Returns
    -------
    dict of Steered
        By mode.
    """
    variants, scales = fitted.variants(), torch.tensor(alphas)
    layers, moved = list(fitted.layers), scales != 0
    if prefix.ran is None and any(MODES[mode].behind for mode in modes):
        prefix = replace(model.prefix(prefix.input_ids[0]), residuals=prefix.residuals)
    if "all-positions" in modes:
        streams = model.streams(prefix.input_ids[0], layers)
    found: dict[str, list[tuple[Tensor, ...]]] = {mode: [] for mode in modes}
    for place, layer in enumerate(layers):
        changed = partial(
            changes,
            steered=variants,
            controls=fitted.controls[place],
            norms=fitted.norms[:, :, layer],
            alphas=scales[moved],
            own=own,
            place=place,
        )
        at_answer = torch.cat(list(changed(prefix.residuals[layer].float().cpu())))
        for mode in modes:
            parts: Iterable[Tensor] = [at_answer]
            if mode == "all-positions":  # some at a time: each holds the stream of the whole prompt
                everywhere = changed(streams[place].float().cpu())
                parts = (some.movedim(1, 0) for some in everywhere)
            ends = [final_residuals(model, prefix, layer, one, mode, chunk) for one in parts]
            unsteered = prefix.residuals[MODES[mode].read(layer, model.n_layers)].float().cpu()
            found[mode].append(_read(model, torch.cat(ends), unsteered, option_ids, moved))
    return {
        mode: _named(by_layer, len(variants), len(fitted.norms)) for mode, by_layer in found.items()
    }


def _named(by_layer: Sequence[tuple[Tensor, ...]], n_variants: int, n_fits: int) -> Steered[Tensor]:
    """Readings by layer, in the order of :func:`changes`, as what they are."""
    live, frozen, growth = (torch.stack(one, 1) for one in zip(*by_layer, strict=True))
    n_fitted, grid = n_variants * n_fits, (n_variants, n_fits)
    return Steered(
        fitted=live[:n_fitted].unflatten(0, grid),
        frozen=frozen[:n_fitted].unflatten(0, grid),
        controls=live[n_fitted:],
        growth=growth[:n_fits],
    )


@torch.inference_mode()
def _read(
    model: LensModel, ends: Tensor, unsteered: Tensor, option_ids: Tensor, moved: Tensor
) -> tuple[Tensor, ...]:
    """Live and frozen logits, and growth, at all settings of a layer; (directions, alphas, ...).

    ``ends`` (settings + 1, d): at the scales that move, last where nothing was changed. All
    settings of scale 0 are one and the same.
    """
    ends = ends[:-1] + (unsteered - ends[-1])
    still = model.option_logits(unsteered, option_ids).cpu()
    grown = (model.norm_scale(ends) / model.norm_scale(unsteered)).cpu()
    read = (
        (model.option_logits(ends, option_ids).cpu(), still),
        (model.option_logits(ends, option_ids, frozen_at=unsteered).cpu(), still),
        (grown, torch.ones(())),
    )
    found = []
    for one, at_zero in read:
        n_directions = len(one) // int(moved.sum())
        every = at_zero.expand(n_directions, len(moved), *at_zero.shape).clone()
        every[:, moved] = one.reshape(n_directions, -1, *at_zero.shape)
        found.append(every)
    return tuple(found)
