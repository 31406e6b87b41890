"""Changing the residual stream by a direction, and what it does.

The paper's intervention adds ``eta * v`` at layer l, with ``eta = alpha * mean ||h[l]||``, so that
alpha means the same in every model. Three modes: ``lens`` changes the answer position and reads at
the steered layer itself; ``through-network`` runs the blocks above on it and reads at layer L;
``all-positions`` does so with the stream of every token of the prompt changed alike. Each is read
with the final norm live, and with its scale frozen at that of the unsteered stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from layercal.model import LensModel, Prefix

READ_LAYER = {
    "lens": lambda layer, final: layer,
    "through-network": lambda layer, final: final,
    "all-positions": lambda layer, final: final,
}
# added to a mode: read with the scale of the final norm frozen
FROZEN = "-frozen"


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
    """Control: turn towards the direction, keeping the norm; parameters as in :func:`add`."""
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


@dataclass
class Variant:
    """A direction, or subspace, and what is done with it.

    Attributes
    ----------
    name : str
        Of the direction; with the intervention, if that is not ``add``.
    intervention : str
        Of ``INTERVENTIONS``.
    fits : Tensor, shape (K, K, layers or 1, r, d)
        ``[f, g]`` did not see the folds f and g.
    """

    name: str
    intervention: str
    fits: Tensor

    def basis(self, own: int, place: int) -> Tensor:
        """Fits for the K outer folds that did not see a question's own fold; (K, r, d)."""
        return self.fits[:, own, place if self.fits.shape[2] > 1 else 0]


def variants(fitted: dict[str, Tensor]) -> list[Variant]:
    """Everything that is done: each direction is added; the first one's controls; the subspace.

    Parameters
    ----------
    fitted : dict of Tensor
        ``directions.safetensors``: ``direction/<number>/<name>`` (K, K, layers or 1, d), the first
        one primary; ``subspace`` (K, K, 1, r, d).
    """
    directions = sorted(key for key in fitted if key.startswith("direction/"))
    found = [Variant(key.split("/", 2)[2], "add", fitted[key].unsqueeze(3)) for key in directions]
    primary = found[0]
    for how in ("subtract", "rotate", "rescale"):
        found.append(Variant(f"{primary.name} ({how})", how, primary.fits))
    return [*found, Variant("phase-subspace (rescale)", "rescale", fitted["subspace"])]


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
    """Option logits of one prompt under many changes of its residual stream.

    Parameters
    ----------
    model : LensModel
    prefix : Prefix
        The prompt, run once.
    layer : int
        Where the stream is changed.
    changed : Tensor, shape (S, d), or (S, tokens, d) for all-positions
        Residuals at ``layer``, one row a setting.
    option_ids : Tensor, shape (n_options,)
    mode : {"lens", "through-network", "all-positions"}
    chunk : int
        Tokens that go through the network in one pass, but at least one setting; bounds memory.

    Returns
    -------
    live, frozen : Tensor, shape (S, n_options)
        With the final norm live, and with its scale frozen at that of the unsteered stream.
    """
    unsteered = prefix.residuals[READ_LAYER[mode](layer, model.n_layers)]
    rows_at_once = max(chunk // changed.shape[1:-1].numel(), 1)
    # filled in place: results kept one by one would scatter over the freed memory between passes
    live, frozen = torch.empty(2, len(changed), len(option_ids))
    for rows in torch.arange(len(changed)).split(rows_at_once):
        part = changed[rows].to(model.device)
        if mode == "through-network":
            part = model.continue_from(prefix, layer, part)
        elif mode == "all-positions":  # the blocks up to the layer have run once, for all
            part = model.continue_all(prefix.input_ids[0], layer, part)
        live[rows] = model.option_logits(part, option_ids).cpu()
        frozen[rows] = model.option_logits(part, option_ids, frozen_at=unsteered).cpu()
    return live, frozen


def changes(
    h: Tensor,
    steered: Sequence[Variant],
    random: Tensor,
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
    random : Tensor, shape (R, d)
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
        For each variant the fits for the K outer folds, each at all scales; then the random
        directions; last ``h`` itself.
    """
    eta = norms[:, own, None] * alphas
    for one in steered:
        moved = INTERVENTIONS[one.intervention](h, one.basis(own, place), eta, alphas)
        yield moved.flatten(-3, -2)
    for some in random.split(len(norms)):
        yield add(h, some[:, None], eta[own].expand(len(some), -1), alphas).flatten(-3, -2)
    yield h[..., None, :]


def sweep_prompt(
    model: LensModel,
    prefix: Prefix,
    option_ids: Tensor,
    fitted: dict[str, Tensor],
    own: int,
    alphas: Sequence[float],
    modes: Sequence[str],
    chunk: int = 512,
) -> dict[str, Tensor]:
    """Sweep one prompt over variants, layers and scales.

    Parameters
    ----------
    model : LensModel
    prefix : Prefix
        The prompt, run once.
    option_ids : Tensor, shape (n_options,)
    fitted : dict of Tensor
        ``directions.safetensors``: as :func:`variants` reads it, with ``random`` (R, d), ``norms``
        (K, K, L + 1) and ``layers``.
    own : int
        The question's fold.
    alphas : sequence of float
    modes : sequence of {"lens", "through-network", "all-positions"}
    chunk : int
        Tokens that go through the network in one pass; bounds memory.

    Returns
    -------
    dict of Tensor, shape (V, layers, alphas, n_options)
        One for each mode, of all variants and random directions; and one for each mode with the
        norm's scale frozen, of the variants alone.
    """
    steered, scales = variants(fitted), torch.tensor(alphas)
    n_fitted = len(steered) * len(fitted["norms"])
    n_directions = n_fitted + len(fitted["random"])
    layers, moved = fitted["layers"].tolist(), scales != 0
    if "all-positions" in modes:
        streams = model.streams(prefix.input_ids[0], layers)
    found = {name: [] for mode in modes for name in (mode, mode + FROZEN)}
    for place, layer in enumerate(layers):
        norms = fitted["norms"][:, :, layer]
        rest = steered, fitted["random"], norms, scales[moved], own, place
        at_answer = torch.cat(list(changes(prefix.residuals[layer].float().cpu(), *rest)))
        for mode in modes:
            parts = [at_answer]
            if mode == "all-positions":  # some at a time: each holds the stream of the whole prompt
                everywhere = changes(streams[place].float().cpu(), *rest)
                parts = (some.movedim(1, 0) for some in everywhere)
            read = [
                steered_logits(model, prefix, layer, part, option_ids, mode, chunk)
                for part in parts
            ]
            for name, some in zip((mode, mode + FROZEN), zip(*read, strict=True), strict=True):
                # all settings of scale 0 are one and the same: it ran once
                logits = torch.cat(some)
                every = logits[-1].repeat(n_directions, len(alphas), 1)
                every[:, moved] = logits[:-1].reshape(n_directions, -1, len(option_ids))
                found[name].append(every if name == mode else every[:n_fitted])
    return {name: torch.stack(layers, 1) for name, layers in found.items()}
