"""The unembedding as the residual stream sees it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from tqdm import tqdm

from layercal.model import architecture
from layercal.model.lens_model import LensModel
from layercal.model.passes import ROUNDING


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
    gain, *_ = model.norm_map
    projection = model.readout.projection(model.width)
    if projection is not None:
        rows = rows @ projection.cpu().double()
    return as_seen(model, rows * gain.cpu().double())


def as_seen(model: LensModel, vectors: Tensor) -> Tensor:
    """Vectors (..., d) as the final norm sees them: where it centres, without their mean."""
    return vectors - vectors.mean(-1, keepdim=True) if model.norm_map[2] else vectors


def effective_rows(model: LensModel, label: str, chunk: int = 4096) -> Iterator[Tensor]:
    """Rows of the effective unembedding, a chunk of the vocabulary at a time; (chunk, d)."""
    weight = model.head.weight.detach()
    parts = weight.split(chunk)
    total = sum(part.cpu().double().sum(0) for part in parts)
    mean = fold_rows(model, total[None] / len(weight))
    for part in tqdm(parts, desc=label, unit="chunk", disable=None):
        yield fold_rows(model, part.cpu().double()) - mean


class OptionReadout:
    """Option logits from all that they depend on: products of a residual, and its mean square.

    ``logits = finish(rows @ h / sqrt(mean square + epsilon) + shift)``: what the norm and the
    head do is linear but for one scale.

    Parameters
    ----------
    model : LensModel
    option_ids : Tensor, shape (n_options,)

    Attributes
    ----------
    rows : Tensor, shape (n_options, d)
        float64; of the options, as :func:`fold_rows` gives them.
    """

    @torch.inference_mode()
    def __init__(self, model: LensModel, option_ids: Tensor):
        weight, bias = model.head.weight.detach(), model.head.bias
        option_ids = option_ids.to(weight.device)
        own = weight[option_ids].cpu().double()
        self.rows = fold_rows(model, own)
        nothing = torch.zeros(1, 1, model.width, device=weight.device)
        self.shift = (
            own @ model.readout(inputs_embeds=nothing).last_hidden_state[0, 0].cpu().double()
        )
        if bias is not None:
            self.shift += bias[option_ids].cpu().double()
        self.epsilon = _epsilon(model)
        decoder, head = model.paths
        after = architecture.Readout([nn.Identity()], model.readout.output)
        self.own_code = architecture.with_modules(
            model.model, {decoder: after, head: nn.Identity()}
        )

    @torch.inference_mode()
    def logits(self, products: Tensor, square: Tensor, frozen_at: Tensor | None = None) -> Tensor:
        """Logits with the final norm live, or with its scale frozen.

        Parameters
        ----------
        products : Tensor, shape (..., n_options)
            Of residuals with ``rows``.
        square : Tensor, shape (...)
            Mean squares of the residuals, centred if the norm centres.
        frozen_at : Tensor, optional
            Mean squares at which to freeze, broadcast against ``square``.

        Returns
        -------
        Tensor, shape (..., n_options)
            float32.
        """
        scale = (square + self.epsilon).rsqrt()
        if frozen_at is not None:
            scale = scale * (square / frozen_at).sqrt()
        given = (products * scale[..., None] + self.shift).float()
        # scaling and soft-capping are the model's own
        finished = self.own_code(inputs_embeds=given.reshape(1, -1, given.shape[-1])).logits
        return finished.reshape(given.shape)


def _epsilon(model: LensModel) -> float:
    """What the final norm adds to the mean square, seen on a residual so small that it shows."""
    gain, bias, _ = model.norm_map
    small = torch.ones_like(gain)
    small[1::2] = -1
    small = 1e-3 * (small - small.mean())
    place = gain.abs().argmax()
    normed = (model.readout.after[0](small[None, None])[0, 0] - bias)[place]
    scale = (normed.double() / (gain * small)[place].double()).item()
    return max(scale**-2 - small.double().square().mean().item(), 0.0)


@torch.inference_mode()
def reads_in_closed_form(model: LensModel) -> bool:
    """Whether :class:`OptionReadout` gives the model's own option logits, found by trying both."""
    readout = OptionReadout(model, option_ids := torch.arange(4))
    drawn = torch.randn(16, model.width, generator=torch.Generator().manual_seed(0))
    h = drawn * torch.logspace(-1, 3, 16)[:, None]
    seen = as_seen(model, h.double())
    square = seen.square().mean(-1)
    pairs = (
        (
            readout.logits(seen @ readout.rows.T, square, at),
            model.option_logits(h, option_ids, frozen_at).cpu(),
        )
        for at, frozen_at in ((None, None), (square[:1], h[:1]))
    )
    return all(
        bool((found - own).norm() <= ROUNDING[torch.float32] * own.norm()) for found, own in pairs
    )
