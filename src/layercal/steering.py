"""Adding a direction to the residual stream at the answer position, and what it does.

A vector ``eta * v`` is added at layer l, with ``eta = alpha * mean ||h[l]||``, so that alpha means
the same in every model. Two ways to read the effect: ``lens`` reads at the steered layer itself,
``through-network`` runs the blocks above on the changed stream and reads at layer L.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from layercal.model import LensModel, Prefix

READ_LAYER = {"lens": lambda layer, final: layer, "through-network": lambda layer, final: final}


def sweep_layers(peak: int, final: int, most: int) -> list[int]:
    """Layers from the peak to L, evenly thinned to ``most`` of them, both ends kept.

    Parameters
    ----------
    peak, final : int
    most : int
        At least 2.
    """
    return sorted({round(layer) for layer in np.linspace(peak, final, min(most, final - peak + 1))})


@torch.inference_mode()
def steered_logits(
    model: LensModel,
    prefix: Prefix,
    layer: int,
    vectors: Tensor,
    option_ids: Tensor,
    mode: str,
    chunk: int = 512,
) -> Tensor:
    """Option logits of one prompt under many added vectors.

    Parameters
    ----------
    model : LensModel
    prefix : Prefix
        The prompt, run once.
    layer : int
        Where the vectors are added.
    vectors : Tensor, shape (S, d)
    option_ids : Tensor, shape (n_options,)
    mode : {"lens", "through-network"}
    chunk : int
        Vectors that go through the network in one pass; bounds memory.

    Returns
    -------
    Tensor, shape (S, n_options)
    """
    changed = prefix.residuals[layer].float() + vectors.to(model.device)
    if mode == "through-network":
        changed = torch.cat(
            [model.continue_from(prefix, layer, part) for part in changed.split(chunk)]
        )
    return model.option_logits(changed, option_ids).cpu()


def sweep_prompt(
    model: LensModel,
    input_ids: Sequence[int],
    option_ids: Tensor,
    directions: Tensor,
    norms: Tensor,
    layers: Sequence[int],
    alphas: Sequence[float],
    modes: Sequence[str],
) -> dict[str, Tensor]:
    """Sweep one prompt over directions, layers and scales.

    Parameters
    ----------
    model : LensModel
    input_ids : sequence of int
    option_ids : Tensor, shape (n_options,)
    directions : Tensor, shape (V, d)
        Unit vectors.
    norms : Tensor, shape (V, L + 1)
        Mean residual norms, as each direction's fit saw them.
    layers : sequence of int
    alphas : sequence of float
    modes : sequence of {"lens", "through-network"}

    Returns
    -------
    dict of Tensor, shape (V, layers, alphas, n_options)
        One for each mode.
    """
    prefix = model.prefix(torch.tensor(input_ids))
    scales = torch.tensor(alphas)
    n_options = len(option_ids)
    shape = (len(directions), len(layers), len(alphas), n_options)
    found = {mode: torch.empty(shape) for mode in modes}
    for place, layer in enumerate(layers):
        eta = scales * norms[:, layer, None]
        vectors = (eta[..., None] * directions[:, None]).flatten(0, 1)
        # all settings of scale 0 are one and the same: run it once
        moved = vectors.any(-1)
        kept = torch.cat([vectors[moved], torch.zeros(1, vectors.shape[-1])])
        for mode in modes:
            logits = steered_logits(model, prefix, layer, kept, option_ids, mode)
            every = logits[-1].repeat(len(vectors), 1)
            every[moved] = logits[:-1]
            found[mode][:, place] = every.reshape(shape[0], shape[2], n_options)
    return found


def directions_of(
    fitted: dict[str, Tensor], estimators: Sequence[str], row: int
) -> tuple[Tensor, Tensor]:
    """All directions that one question is steered by, with the norms that their scales refer to.

    Parameters
    ----------
    fitted : dict of Tensor
        ``fold`` (n,), ``norms`` (K, K, L + 1), ``random`` (R, d), and (K, K, d) an estimator.
    estimators : sequence of str
    row : int
        The question.

    Returns
    -------
    directions : Tensor, shape (V, d)
        For each estimator the fits for the K outer folds, then the random directions.
    norms : Tensor, shape (V, L + 1)
    """
    own = int(fitted["fold"][row])
    random = fitted["random"]
    directions = torch.cat([*(fitted[name][:, own] for name in estimators), random])
    norms = fitted["norms"][:, own]
    norms = torch.cat([*(norms for _ in estimators), norms[own].expand(len(random), -1)])
    return directions, norms
