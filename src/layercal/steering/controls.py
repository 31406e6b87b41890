"""Random directions that do to read-out and norm what a fitted direction does.

A direction added to the stream can lower confidence without knowing anything of calibration: it
grows what the final norm divides by. A random direction of the same norm is no fair control of it,
since it also moves the option logits apart and meets the stream at another angle. The controls here
move no option logit and grow the norm as the fitted direction does.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from layercal.model import LensModel
from layercal.model.unembedding import as_seen, fold_rows
from layercal.steering.directions import Split


def unseen_basis(model: LensModel, option_ids: Tensor) -> Tensor:
    """What controls must not move: the option-logit differences as the stream sees them.

    With the final norm's gain folded in; where the norm centres, the all-ones direction, which it
    takes out, belongs to it.

    Returns
    -------
    Tensor, shape (r, d)
        Orthonormal rows, float64.
    """
    weight = model.head.weight.detach()
    rows = fold_rows(model, weight[option_ids.to(weight.device)].cpu().double())
    differences = rows[1:] - rows[:1]
    if model.norm_map[2]:
        differences = torch.cat([differences, torch.ones(1, differences.shape[1]).double()])
    _, size, basis = torch.linalg.svd(differences, full_matrices=False)
    return basis[size > 1e-9 * size[0]]


def matched_directions(
    split: Split, primary: Tensor, layers: Sequence[int], count: int, seed: int
) -> Tensor:
    """Random directions off the option differences, at the primary's mean cosine to the stream.

    ``a m + sqrt(1 - a^2) u``, with m the part of the mean unit stream that moves no option logit, u
    drawn uniformly from the unit sphere of what is orthogonal to that and to the option
    differences, and a such that the mean cosine with the stream is that of the primary direction.
    The norm then grows as it does under the primary, while all answers stay. No answer is looked
    at, so that a control needs no cross-fitting.

    Parameters
    ----------
    split : Split
        All questions.
    primary : Tensor, shape (K, K, layers or 1, d)
        From :func:`layercal.steering.directions.cross_fit`.
    layers : sequence of int
        At which directions are added.
    count, seed : int

    Returns
    -------
    Tensor, shape (layers, count, d)
        float32. Of norm 1, or, where the final norm centres, the norm of what it sees of the
        primary. Where no control reaches the primary's cosine it has the nearest that one can have.
    """
    unseen = unseen_basis(split.model, split.option_ids)
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, split.residuals.shape[-1], generator=generator).double()
    found = []
    for place, layer in enumerate(layers):
        fitted = primary.diagonal()[place if primary.shape[2] > 1 else 0].T.double()
        stream, seen = (
            as_seen(split.model, one) for one in (split.residuals[:, layer].double(), fitted)
        )
        stream = normalize(stream, dim=-1)
        mean = _off(stream.mean(0), unseen)
        cosine = (normalize(seen, dim=-1) @ stream.T).mean()
        along = (cosine / mean.norm()).clamp(-1, 1)
        away = normalize(_off(_off(drawn, unseen), normalize(mean, dim=0)[None]), dim=-1)
        unit = along * normalize(mean, dim=0) + (1 - along**2).sqrt() * away
        found.append(unit * seen.norm(dim=-1).mean())
    return torch.stack(found).float()


def _off(vectors: Tensor, basis: Tensor) -> Tensor:
    """The part of vectors outside of a space."""
    return vectors - vectors @ basis.T @ basis
