"""Calibration directions of the residual stream: estimators and controls, cross-fitted.

An estimator is a function ``(residuals (n, L + 1, d), k) -> unit vector (d,)``, found by its name
in ``ESTIMATORS``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Estimator = Callable[[Tensor, int], Tensor]


def unit_updates(residuals: Tensor, k: int) -> Tensor:
    """Unit residual updates ``(h[l] - h[l-1]) / ||.||`` of the last k blocks.

    Parameters
    ----------
    residuals : Tensor, shape (n, L + 1, d)
        Before the final norm at every layer, L included.
    k : int

    Returns
    -------
    Tensor, shape (n, k, d)
        float32.
    """
    updates = residuals[:, -k - 1 :].float().diff(dim=1)
    return torch.nn.functional.normalize(updates, dim=-1)


def update_mean(residuals: Tensor, k: int) -> Tensor:
    """Unit mean of the unit block updates over the last k blocks (Joshi et al. 2025).

    Parameters
    ----------
    residuals : Tensor, shape (n, L + 1, d)
    k : int
        The paper takes 3.

    Returns
    -------
    Tensor, shape (d,)
    """
    return torch.nn.functional.normalize(unit_updates(residuals, k).mean((0, 1)), dim=0)


ESTIMATORS: dict[str, Estimator] = {"update-mean": update_mean}


def random_directions(count: int, width: int, seed: int) -> Tensor:
    """Control: directions drawn uniformly from the unit sphere.

    Returns
    -------
    Tensor, shape (count, width)
        float32 rows of norm 1.
    """
    drawn = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(drawn, dim=-1)


def cross_fit(
    fit: Callable[[Tensor], Tensor], residuals: Tensor, fold: np.ndarray, n_folds: int
) -> Tensor:
    """Fit once for each pair of folds, leaving both out.

    Outer fold f is where a direction is scored, once. To choose its scale, the questions of every
    other fold g are steered by a fit without f **and** g, so that neither the scale nor the
    direction ever saw a question it is scored on.

    Parameters
    ----------
    fit : function (m, L + 1, d) -> Tensor (...)
    residuals : Tensor, shape (n, L + 1, d)
    fold : array of int, shape (n,)
    n_folds : int

    Returns
    -------
    Tensor, shape (K, K, ...)
        ``[f, g]`` is fitted without folds f and g; symmetric; ``[f, f]`` leaves out f alone.
    """
    fold = torch.as_tensor(np.asarray(fold))
    fits: dict[tuple[int, int], Tensor] = {
        (f, g): fit(residuals[(fold != f) & (fold != g)])
        for f in range(n_folds)
        for g in range(f, n_folds)
    }
    pairs = [[fits[min(f, g), max(f, g)] for g in range(n_folds)] for f in range(n_folds)]
    return torch.stack([torch.stack(row) for row in pairs])


def mean_norms(residuals: Tensor) -> Tensor:
    """Mean norm of the residual stream at every layer, the unit of the scale alpha.

    Parameters
    ----------
    residuals : Tensor, shape (n, L + 1, d)

    Returns
    -------
    Tensor, shape (L + 1,)
    """
    return residuals.float().norm(dim=-1).mean(0)


def describe(name: str, fitted: Tensor, residuals: Tensor, k: int) -> list[dict]:
    """Describe the fit scored on each fold, over all questions.

    Parameters
    ----------
    name : str
        Of the estimator.
    fitted : Tensor, shape (K, K, d)
        From :func:`cross_fit`.
    residuals : Tensor, shape (n, L + 1, d)
    k : int
        Blocks the direction was fitted on.

    Returns
    -------
    list of dict
        One a fold and layer 1 .. L: ``cosine``, the mean cosine of the direction with the block
        update into that layer; ``explained_variance``, the mean squared cosine; ``agreement``, the
        lowest cosine of this fold's direction with another fold's.
    """
    n_layers = residuals.shape[1] - 1
    scored = fitted.diagonal().T
    cosines = unit_updates(residuals, n_layers) @ scored.T
    agreement = (scored @ scored.T).amin(-1)
    return [
        {
            "name": name,
            "estimator": name,
            "blocks": k,
            "fold": fold,
            "layer": layer,
            "cosine": cosines[:, layer - 1, fold].mean().item(),
            "explained_variance": (cosines[:, layer - 1, fold] ** 2).mean().item(),
            "agreement": agreement[fold].item(),
        }
        for fold in range(len(scored))
        for layer in range(1, n_layers + 1)
    ]
