"""Entropy neurons of the last block, which write into the null space of the unembedding.

Their effect is read by mean ablation (Stolfo et al. 2024, arXiv 2406.16254).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from layercal import InputError
from layercal.ablation.nullspace import Unembedding
from layercal.model import LensModel, architecture
from layercal.model.passes import ROUNDING
from layercal.model.unembedding import effective_rows


@dataclass
class Neurons:
    """The MLP neurons of the last block and how they reach the final residual.

    ``h[L] = rest + scale * after(activations @ weight + bias)``.

    Attributes
    ----------
    projection : nn.Module
        Where their activations can be read: its input.
    weight : Tensor, shape (m, d)
        float32; row j is ``w_out`` of neuron j.
    bias : Tensor, shape (d,)
    after : nn.Module or None
        The norm of blocks that norm the MLP's output before they add it, in float32.
    scale : float
    """

    projection: nn.Module
    weight: Tensor
    bias: Tensor
    after: nn.Module | None
    scale: float

    def output(self, activations: Tensor) -> Tensor:
        """What activations (..., m) give before any norm of the block; (..., d)."""
        return activations @ self.weight + self.bias

    def added(self, output: Tensor) -> Tensor:
        """What such an output (..., d) adds to the residual stream; (..., d)."""
        return self.scale * (output if self.after is None else self.after(output))


def find_neurons(model: LensModel) -> Neurons:
    """Find the neurons of the last block's MLP, and prove it by a real pass without every other.

    Parameters
    ----------
    model : LensModel

    Raises
    ------
    InputError
        If the block is a mixture of experts, its weights are quantized, or what its neurons add to
        the stream is not what their output weights say.
    """
    name, parts = type(model.blocks[-1]).__name__, model.parts[-1]
    if parts.projection is None:
        raise InputError(
            f"{name}: no one linear layer gives its MLP's output from its neurons (a mixture of "
            "experts?), so entropy neurons are not defined"
        )
    weight, bias = parts.projection.weight, parts.projection.bias
    if not weight.is_floating_point():
        raise InputError(f"{name}: its MLP is quantized; read entropy neurons with quantize: none")
    weight = weight if isinstance(parts.projection, Conv1D) else weight.T
    found = Neurons(
        parts.projection,
        weight.detach().float(),
        weight.new_zeros(weight.shape[1]).float() if bias is None else bias.detach().float(),
        parts.after and architecture.as_float32(parts.after),
        parts.scale,
    )
    _prove(model, found, name)
    return found


@torch.inference_mode()
def _prove(model: LensModel, found: Neurons, name: str) -> None:
    seen: list[Tensor] = []
    # not all of them alike, which a norm after them would undo
    kept = (torch.arange(len(found.weight), device=found.weight.device) % 2).float()

    def thin(activations: Tensor) -> Tensor:
        seen.append(activations.reshape(1, -1).float())
        return activations * kept.to(activations)

    prefix = model.prefix(torch.arange(1, 5))
    last = model.n_layers - 1
    with architecture.hook(found.projection, thin, before=True):
        thinned = model.batched_pass(prefix, last, prefix.residuals[last][None]).float()
    active = seen[0]
    change = found.added(found.output(active * kept)) - found.added(found.output(active))
    h, change = prefix.residuals[-1].float(), change.to(model.device)
    allowed = ROUNDING[model.dtype] * change.norm() + torch.finfo(model.dtype).eps * h.norm()
    if not (thinned - h - change).norm() <= allowed:
        raise InputError(
            f"{name}: a pass without every other neuron of its MLP does not end as their output "
            "weights say, so they cannot be ablated in closed form"
        )


def describe(
    model: LensModel, found: Neurons, unembedding: Unembedding, rules: Sequence[str]
) -> pd.DataFrame:
    """Say of every neuron what makes it an entropy neuron or not.

    ``w_out`` is taken as it reaches the stream: with the gain of the norm that some blocks put
    after it, and without its mean where that norm or the final norm centres. Formulas of Stolfo et
    al. 2024.

    Parameters
    ----------
    model : LensModel
    found : Neurons
    unembedding : Unembedding
    rules : sequence of str

    Returns
    -------
    DataFrame
        One row a neuron: ``neuron``, ``norm`` (of w_out), ``cosine_variance`` (over the
        vocabulary, of the cosine of w_out with a token's row of the effective unembedding), and
        for each rule ``null_share:<rule>``, the share of the squared norm in the null space.
    """
    weight = _reaching_weight(model, found)
    norm = weight.norm(dim=-1)
    unit = weight / norm.clamp(min=torch.finfo(norm.dtype).tiny)[:, None]
    mean, second = _cosine_moments(model)
    variance = ((unit @ second) * unit).sum(-1) - (unit @ mean).square()
    columns = {"neuron": range(len(norm)), "norm": norm, "cosine_variance": variance.clamp(min=0)}
    for rule in rules:
        columns[f"null_share:{rule}"] = (unit @ unembedding.null_basis(rule).T).square().sum(-1)
    return pd.DataFrame(columns)


def _reaching_weight(model: LensModel, found: Neurons) -> Tensor:
    """Output weights as :func:`describe` takes them; (m, d) float64."""
    weight = found.weight.cpu().double()
    if found.after is not None:
        with torch.inference_mode():
            gain, _, centred = architecture.norm_map(found.after, model.width)
        weight = (weight - weight.mean(-1, keepdim=True) if centred else weight) * gain.cpu()
    weight = found.scale * weight
    return weight - weight.mean(-1, keepdim=True) if model.norm_map[2] else weight


def _cosine_moments(model: LensModel) -> tuple[Tensor, Tensor]:
    """Mean (d,) and mean outer product (d, d) of the unit rows of the effective unembedding.

    With them the variance over the vocabulary costs d^2 a neuron and not vocabulary x d.
    """
    size = len(model.head.weight)
    mean = torch.zeros(model.width, dtype=torch.float64)
    second = torch.zeros(model.width, model.width, dtype=torch.float64)
    for rows in effective_rows(model, "cosines"):
        unit = nn.functional.normalize(rows, dim=-1)
        mean += unit.sum(0) / size
        second += unit.T @ unit / size
    return mean, second


def entropy_neurons(table: pd.DataFrame, count: int, norm_quantile: float = 0.75) -> list[int]:
    """Choose the neurons of high norm and low variance.

    Stolfo et al. 2024 read them off a plot of the two and state no bound. Here: of the neurons
    whose norm is at least the block's ``norm_quantile``, the ``count`` of lowest cosine variance,
    lowest first.

    Parameters
    ----------
    table : DataFrame
        From :func:`describe`.
    count : int
    norm_quantile : float
        0 to 1.
    """
    high = high_norm(table, norm_quantile)
    return high.sort_values("cosine_variance", kind="stable")["neuron"].head(count).tolist()


def high_norm(table: pd.DataFrame, norm_quantile: float = 0.75) -> pd.DataFrame:
    """Neurons whose norm is at least the block's ``norm_quantile``, of :func:`describe`'s table."""
    return table[table["norm"] >= table["norm"].quantile(norm_quantile)]


@torch.inference_mode()
def without_neurons(
    found: Neurons, residual: Tensor, active: Tensor, means: Tensor, groups: Iterable[Sequence[int]]
) -> Iterator[Tensor]:
    """Final residuals had each group of neurons in turn been at its mean.

    Exact, since nothing but the final norm follows the last block's MLP. Read with a live norm by
    ``model.option_logits(changed, option_ids)``, with a frozen one by
    ``model.option_logits(changed, option_ids, frozen_at=residual)``.

    Parameters
    ----------
    found : Neurons
    residual : Tensor, shape (n, d)
        ``h[L]``.
    active : Tensor, shape (n, m)
        Activations, as :func:`layercal.model.recording.recorded` gives them.
    means : Tensor, shape (m,) or (n, m)
        Mean activations over a set of questions; one row a question where each question is
        ablated to the mean of other folds.
    groups : iterable of sequences of int

    Yields
    ------
    Tensor, shape (n, d)
        float32; one a group, made when asked for: those of a large set would not fit together.
    """
    device = found.weight.device
    residual, active = residual.to(device).float(), active.to(device).float()
    moved = means.to(active) - active
    output = found.output(active)
    rest = residual - found.added(output)
    for group in groups:
        yield rest + found.added(output + moved[:, group] @ found.weight[group])
