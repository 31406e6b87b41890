"""The logit lens: residuals -> option logits, option mass and entropy at every layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from layercal.model.lens_model import LensModel


@torch.inference_mode()
def read(
    model: LensModel,
    residuals: Tensor,
    option_ids: Tensor,
    n_options: Tensor | None = None,
    chunk: int = 256,
) -> dict[str, Tensor]:
    """Read residuals through the model's own final norm and unembedding.

    Parameters
    ----------
    model : LensModel
    residuals : Tensor, shape (..., d)
    option_ids : Tensor, shape (n_options,)
        Token ids of the option letters.
    n_options : Tensor of int, broadcastable to (...), optional
        Where questions differ in their number of options; all of them if left out.
    chunk : int
        Vectors projected onto the whole vocabulary at a time; bounds memory.

    Returns
    -------
    dict of Tensor
        ``logits`` (..., n_options), -inf for options that a question has not; ``option_mass``
        (...), the probability of the option tokens under the softmax over the vocabulary;
        ``entropy`` (...) of that softmax, in nats.
    """
    shape = residuals.shape[:-1]
    counts = torch.tensor(len(option_ids)) if n_options is None else n_options
    lacking = torch.arange(len(option_ids)) >= counts.expand(shape).reshape(-1, 1)
    flat = residuals.reshape(-1, residuals.shape[-1])
    logits, mass, entropy = [], [], []
    for part, none in zip(flat.split(chunk), lacking.split(chunk), strict=True):
        over_vocabulary, none = model.unembed(part), none.to(model.device)
        log_probability = over_vocabulary.log_softmax(-1)
        logits.append(over_vocabulary[:, option_ids].masked_fill(none, -torch.inf))
        mass.append(log_probability[:, option_ids].exp().masked_fill(none, 0).sum(-1))
        entropy.append(-(log_probability.exp() * log_probability).sum(-1))
    return {
        "logits": torch.cat(logits).reshape(*shape, -1),
        "option_mass": torch.cat(mass).reshape(shape),
        "entropy": torch.cat(entropy).reshape(shape),
    }


@torch.inference_mode()
def read_options(
    model: LensModel,
    residuals: Tensor,
    option_ids: Tensor,
    n_options: Tensor,
    frozen_at: Tensor | None = None,
) -> np.ndarray:
    """Read residuals of questions on their options only, at once.

    Parameters
    ----------
    model : LensModel
    residuals : Tensor, shape (n, d)
    option_ids : Tensor, shape (n_options,)
    n_options : Tensor of int, shape (n,)
        -inf stands for options that a question has not.
    frozen_at : Tensor, shape (n, d), optional
        As of :meth:`layercal.model.LensModel.option_logits`.

    Returns
    -------
    array, shape (n, n_options)
    """
    lacking = torch.arange(len(option_ids)) >= n_options[:, None]
    logits = model.option_logits(residuals, option_ids, frozen_at).cpu()
    return logits.masked_fill(lacking, -torch.inf).numpy()


PENALTIES = torch.logspace(-3, 3, 13)


@torch.inference_mode()
def translate(
    residuals: Tensor, final: Tensor, fold: Tensor, penalties: Tensor = PENALTIES
) -> Tensor:
    """Tuned lens: carry a layer's residuals to the last by an affine map, cross-fitted.

    The map ``h + W (h - mean) + b`` of Belrose et al. 2023 (arXiv 2303.08112), here fitted by ridge
    regression in closed form to the final residual, with the penalty on W: without data it is the
    logit lens shifted to the right mean. The penalty is chosen by the leave-one-out error on the
    fit split, in closed form too.

    Parameters
    ----------
    residuals, final : Tensor, shape (n, d)
        Of the layer, and of the last.
    fold : Tensor of int, shape (n,)
        Each fold is translated by maps fitted on the other folds.
    penalties : Tensor
        Candidates, in units of the mean squared singular value of the residuals.

    Returns
    -------
    Tensor, shape (n, d)
        float32.
    """
    h = residuals.float()
    difference, translated = final.float() - h, torch.empty_like(h)
    for f in fold.unique():
        inside = fold == f
        update = _fit_ridge(h[~inside], difference[~inside], penalties)
        translated[inside] = h[inside] + update(h[inside])
    return translated


def _fit_ridge(x: Tensor, y: Tensor, penalties: Tensor) -> Callable[[Tensor], Tensor]:
    """Ridge regression with intercept; returns the fitted function.

    By the eigenvectors of the smaller Gram matrix, in float64, which are those of the singular
    value decomposition at a fraction of its time.
    """
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = x - mean_x, y - mean_y
    few = len(x) <= x.shape[1]  # questions than dimensions
    rows = x.double() if few else x.double().T
    values, vectors = (part.to(x) for part in torch.linalg.eigh(rows @ rows.T))
    values = values.clamp(min=0)
    left, size = (vectors, values) if few else (x @ vectors, torch.ones_like(values))
    projected = left.T @ y
    # residuals that are all the same (the embedding of one token) leave the intercept alone
    candidates = penalties * values.mean() + torch.finfo(values.dtype).tiny ** 0.5
    errors = []
    for penalty in candidates:
        shrink = size / (values + penalty)
        leverage = left**2 @ shrink + 1 / len(x)
        missed = y - left @ (shrink[:, None] * projected)
        errors.append(((missed / (1 - leverage)[:, None]) ** 2).sum())
    best = candidates[torch.stack(errors).argmin()]
    weights = vectors @ (projected / (values + best)[:, None])
    weights = x.T @ weights if few else weights
    return lambda new: mean_y + (new - mean_x) @ weights
