"""The null space of the unembedding, and the entropy neurons that write there.

A vector in the null space moves no logit directly: it can only act by growing the residual that
the final norm divides by. Entropy neurons of the last block write there (Stolfo et al. 2024,
arXiv 2406.16254); their effect is read by mean ablation.

A **rule** says how large the null space is: ``k=16``, the 16 directions of the smallest singular
values; ``energy=0.999``, all but the fewest top directions that hold at least that share of the
squared singular values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from layercal import InputError
from layercal.model import LensModel
from layercal.model.unembedding import effective_rows
from layercal.results import Residuals

# a unit vector has no part in a space if less than this of its length lies there
NOTHING = 1e-6


@dataclass
class Unembedding:
    """The right singular vectors of the effective unembedding.

    Attributes
    ----------
    singular_values : Tensor, shape (d,)
        float64, descending; in logits per unit of the normalised residual, before any scaling or
        soft-capping of the logits.
    basis : Tensor, shape (d, d)
        float64; row i is the unit direction of the residual stream of singular value i.
    """

    singular_values: Tensor
    basis: Tensor

    def null_size(self, rule: str) -> int:
        """Number of dimensions of the null space, 0 to d.

        Parameters
        ----------
        rule : str
            ``k=<int>`` or ``energy=<share between 0 and 1>``.

        Raises
        ------
        InputError
            If it is none of them, or out of range.
        """
        kind, _, value = rule.partition("=")
        width = len(self.singular_values)
        try:
            if kind == "k" and 0 <= int(value) <= width:
                return int(value)
            if kind == "energy" and 0 < float(value) < 1:
                energy = self.singular_values.square().cumsum(0)
                return width - 1 - int((energy < float(value) * energy[-1]).sum())
        except ValueError:
            pass
        raise InputError(
            f"null space rule: expected k=<0..{width}> or energy=<between 0 and 1>, got {rule!r}"
        )

    def null_basis(self, rule: str) -> Tensor:
        """Orthonormal rows that span the null space; (k, d), float64."""
        return self.basis[len(self.basis) - self.null_size(rule) :]


def effective_unembedding(model: LensModel) -> Unembedding:
    """Singular vectors of the unembedding as the residual stream sees it.

    The final norm's gain and the projection that some models put after it are folded in. The mean
    over the vocabulary is taken out, since the same logit for all tokens changes nothing; where
    the norm centres, so is the all-ones direction, which then has the singular value 0. Found from
    the d x d Gram matrix, so that singular values below 1e-8 of the largest are rounding.

    Parameters
    ----------
    model : LensModel
    """
    gram = sum(rows.T @ rows for rows in effective_rows(model, "unembedding"))
    energy, vectors = torch.linalg.eigh(gram)
    return Unembedding(energy.clamp(min=0).sqrt().flip(0), vectors.T.flip(0))


def null_part(direction: Tensor, unembedding: Unembedding, rule: str) -> Tensor:
    """The part of a direction that lies in the null space, as a unit vector.

    Parameters
    ----------
    direction : Tensor, shape (..., d)
    unembedding : Unembedding
    rule : str

    Returns
    -------
    Tensor, shape (..., d)
        float32.

    Raises
    ------
    InputError
        If a direction has no such part.
    """
    return _unit_part(direction, unembedding.null_basis(rule), f"null space ({rule})")


def row_part(direction: Tensor, unembedding: Unembedding, rule: str) -> Tensor:
    """The part of a direction outside the null space; as :func:`null_part`."""
    rows = unembedding.basis[: len(unembedding.basis) - unembedding.null_size(rule)]
    return _unit_part(direction, rows, f"row space ({rule})")


def _unit_part(direction: Tensor, basis: Tensor, space: str) -> Tensor:
    direction = direction.to(basis)
    part = direction @ basis.T @ basis
    norm = part.norm(dim=-1, keepdim=True)
    if not (norm > NOTHING * direction.norm(dim=-1, keepdim=True)).all():
        raise InputError(
            f"a direction has no part in the {space} of {len(basis)} dimensions; choose another "
            "rule or leave this control out"
        )
    return (part / norm).float()


@torch.inference_mode()
def question_shares(
    residuals: Residuals | Tensor, unembedding: Unembedding, rules: Sequence[str]
) -> dict[str, Tensor]:
    """Share of the squared norm that lies in the null space, for each question.

    Parameters
    ----------
    residuals : Residuals, or Tensor, shape (n, L + 1, d)
        Before the final norm at every layer, L included.
    unembedding : Unembedding
    rules : sequence of str

    Returns
    -------
    dict of Tensor
        ``residual`` (n, L + 1, rules), of ``h[l]``; ``update`` (n, L, rules), of
        ``h[l] - h[l-1]`` for l = 1 .. L; both from 0 to 1. The zero vector has the share 0.
    """
    sizes = torch.tensor([unembedding.null_size(rule) for rule in rules])
    # smallest singular value first, so that a null space of size k is the first k columns
    basis = unembedding.basis.flip(0)[: sizes.max()].float()

    def share(h: Tensor) -> Tensor:
        energy = (h @ basis.T).square().cumsum(-1)
        energy = torch.cat([torch.zeros(len(h), 1), energy], 1)[:, sizes]
        return energy / h.square().sum(-1, keepdim=True).clamp(min=torch.finfo(h.dtype).tiny)

    below = residuals[:, 0].cpu().float()
    residual, update = [share(below)], []
    for layer in range(1, residuals.shape[1]):
        h = residuals[:, layer].cpu().float()
        residual.append(share(h))
        update.append(share(h - below))
        below = h
    return {"residual": torch.stack(residual, 1), "update": torch.stack(update, 1)}


def null_shares(
    residuals: Residuals | Tensor, unembedding: Unembedding, rules: Sequence[str]
) -> pd.DataFrame:
    """Mean over questions of :func:`question_shares`, by layer.

    Returns
    -------
    DataFrame
        One row a layer, ``what`` (residual, update) and ``rule``, with its ``size`` (dimensions of
        the null space), ``share``, and ``chance``, the share of a vector that points anywhere.
    """
    sizes = {rule: unembedding.null_size(rule) for rule in rules}
    rows = [
        {
            "layer": layer,
            "what": what,
            "rule": rule,
            "size": sizes[rule],
            "share": share,
            "chance": sizes[rule] / residuals.shape[-1],
        }
        for what, found in question_shares(residuals, unembedding, rules).items()
        for layer, shares in enumerate(found.mean(0).tolist(), start=int(what == "update"))
        for rule, share in zip(rules, shares, strict=True)
    ]
    return pd.DataFrame(rows)
