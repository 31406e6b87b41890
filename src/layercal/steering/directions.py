"""Calibration directions of the residual stream: estimators and controls, cross-fitted.

An estimator is a function ``(split, layers) -> unit vectors (layers or 1, d)``, found by its name
in ``ESTIMATORS``: one vector for each layer at which it may be added, or one for all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial

import numpy as np
import torch
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import normalize

from layercal.metrics import calibration
from layercal.metrics.phase import decision_layer
from layercal.model import LensModel
from layercal.results import Residuals
from layercal.steering.fitted import CONTROL, ESTIMATOR, Direction

# relative depths around which update-mean is fitted as a control
DEPTHS = 0.25, 0.5, 0.75


@dataclass
class Split:
    """What an estimator may look at: the questions of a fit split.

    Attributes
    ----------
    residuals : Residuals, or Tensor, shape (m, L + 1, d)
        Before the final norm at every layer, L included.
    logits : array, shape (m, L + 1, n_options)
        Lens readings, -inf where a question has no such option.
    answer : array of int, shape (m,)
    option_ids : Tensor, shape (n_options,)
    model : LensModel
        For what is read off changed residuals.
    blocks : int
        Block updates, counted from the last, that ``update-mean`` takes; the paper's k is 3.
    tolerance : float
        Of the decision layer.
    n_bins : int
        Of the ECE whose peak is sought.
    """

    residuals: Residuals | Tensor
    logits: np.ndarray
    answer: np.ndarray
    option_ids: Tensor
    model: LensModel
    blocks: int = 3
    tolerance: float = 0.02
    n_bins: int = 10

    def take(self, rows: np.ndarray) -> Split:
        """Keep only some of the questions."""
        # a copy: a mask out of pandas is read-only, which torch warns of
        kept = self.residuals[torch.tensor(rows)], self.logits[rows], self.answer[rows]
        return replace(self, residuals=kept[0], logits=kept[1], answer=kept[2])

    @property
    def correct(self) -> np.ndarray:
        """Whether each lens reading is right; (m, L + 1)."""
        return self.logits.argmax(-1) == self.answer[:, None]

    @cached_property
    def peak(self) -> int:
        """Layer of the largest ECE from the decision layer on, below L, in this split alone."""
        confidence = softmax(self.logits.astype(float), -1).max(-1).T
        correct = self.correct.T
        errors = calibration.ece(confidence, correct, self.n_bins)
        last = len(errors) - 1
        first = min(decision_layer(correct.mean(-1), self.tolerance), last - 1)
        return first + int(np.argmax(errors[first:last]))

    def differences(self, layer: int) -> Tensor:
        """What the blocks above a layer add, ``h[L] - h[layer]``; (m, d) float32."""
        return self.residuals[:, -1].float() - self.residuals[:, layer].float()


Estimator = Callable[[Split, Sequence[int]], Tensor]


def unit_updates(residuals: Tensor) -> Tensor:
    """Unit residual updates ``(h[l] - h[l-1]) / ||.||`` between adjacent layers.

    Parameters
    ----------
    residuals : Tensor, shape (n, k + 1, d)

    Returns
    -------
    Tensor, shape (n, k, d)
        float32.
    """
    return normalize(residuals.float().diff(dim=1), dim=-1)


def update_mean(split: Split, layers: Sequence[int]) -> Tensor:
    """Unit mean of the unit block updates over the last blocks (Joshi et al. 2025); (1, d)."""
    return _mean_update(split.residuals[:, -split.blocks - 1 :])


def middle_mean(split: Split, layers: Sequence[int], depth: float) -> Tensor:
    """Control: ``update-mean`` of as many blocks around a relative depth of the network; (1, d)."""
    final = split.residuals.shape[1] - 1
    last = min(max(int(final * depth + (split.blocks + 1) / 2), split.blocks), final)
    return _mean_update(split.residuals[:, max(last - split.blocks, 0) : last + 1])


def _mean_update(residuals: Tensor) -> Tensor:
    return normalize(unit_updates(residuals).mean((0, 1)), dim=0)[None]


def phase_mean(split: Split, layers: Sequence[int]) -> Tensor:
    """Unit mean of what the correction phase adds, ``h[L] - h[peak]``; (1, d)."""
    return normalize(split.differences(split.peak).mean(0), dim=0)[None]


def phase_pca(split: Split, layers: Sequence[int], rank: int) -> Tensor:
    """``phase-mean`` within the top subspace of the phase's differences alone; (1, d)."""
    mean, basis = split.differences(split.peak).mean(0), principal(split, split.peak, rank)
    return normalize((mean @ basis.T) @ basis, dim=0)[None]


def principal(split: Split, layer: int, rank: int) -> Tensor:
    """Top principal directions of ``h[L] - h[layer]``, about 0, not about their mean.

    Returns
    -------
    Tensor, shape (rank or fewer, d)
        Orthonormal rows, by falling share of the squared norm, turned towards the mean.
    """
    differences = split.differences(layer)
    basis = torch.linalg.svd(differences, full_matrices=False).Vh[:rank]
    return basis * torch.where(basis @ differences.mean(0) < 0, -1.0, 1.0)[:, None]


def gradient(split: Split, layers: Sequence[int]) -> Tensor:
    """Steepest descent of the Brier score of confidence, for one vector added to all questions.

    The loss is the mean of ``(confidence - correct)^2`` (Brier 1950) read through the lens at the
    layer; (layers, d).
    """
    absent = torch.as_tensor(np.isneginf(split.logits[:, 0]))
    found = []
    for layer in layers:
        with torch.enable_grad():
            vector = torch.zeros(split.residuals.shape[-1], requires_grad=True)
            h = split.residuals[:, layer].float().clone() + vector
            logits = split.model.option_logits(h, split.option_ids).cpu()
            confidence = logits.masked_fill(absent, -torch.inf).softmax(-1).amax(-1)
            correct = torch.as_tensor(split.correct[:, layer]).float()
            (slope,) = torch.autograd.grad(((confidence - correct) ** 2).mean(), vector)
        found.append(-slope)
    return normalize(torch.stack(found), dim=-1)


def probe(split: Split, layers: Sequence[int]) -> Tensor:
    """Weights of a ridge-penalised logistic regression of correctness on ``h[layer]``; (layers, d).

    Residuals are centred and scaled to a mean squared norm of 1, the inverse penalty is 1. Where
    all answers are right, or all wrong, there is nothing to fit and the vector is zero.
    """
    found = []
    for layer in layers:
        h, correct = split.residuals[:, layer].float(), split.correct[:, layer]
        weights = torch.zeros(h.shape[-1])
        if 0 < correct.mean() < 1:
            h = h - h.mean(0)
            h = h / h.pow(2).sum(-1).mean().sqrt()
            # the penalty is the same in the coordinates of the questions' own span, of which there
            # are fewer than d in a small set
            u, s, v = torch.linalg.svd(h, full_matrices=False)
            fitted = LogisticRegression(C=1.0, max_iter=1000).fit((u * s).numpy(), correct)
            weights = torch.as_tensor(fitted.coef_[0], dtype=torch.float32) @ v
        found.append(weights)
    return normalize(torch.stack(found), dim=-1)


ESTIMATORS: dict[str, Estimator] = {
    "update-mean": update_mean,
    "phase-mean": phase_mean,
    "gradient": gradient,
    "probe": probe,
}


def estimators(names: Sequence[str], ranks: Sequence[int]) -> dict[Direction, Estimator]:
    """The estimators asked for; ``phase-pca`` stands for one of each rank.

    Parameters
    ----------
    names : sequence of str
        Of ``ESTIMATORS``, or ``phase-pca``.
    ranks : sequence of int
    """
    found: dict[Direction, Estimator] = {}
    for name in names:
        if name == "phase-pca":
            for rank in ranks:
                label = f"{name}-{rank}"
                one = Direction(name=label, kind=ESTIMATOR, estimator=name, rank=rank)
                found[one] = partial(phase_pca, rank=rank)
        else:
            found[Direction(name=name, kind=ESTIMATOR, estimator=name)] = ESTIMATORS[name]
    return found


def middle_means() -> dict[Direction, Estimator]:
    """Controls: :func:`middle_mean` at each of ``DEPTHS``."""
    name = "middle-mean"
    return {
        Direction(name=f"{name}-{depth:g}", kind=CONTROL, estimator=name, depth=depth): partial(
            middle_mean, depth=depth
        )
        for depth in DEPTHS
    }


def cross_fit(
    fit: Callable[[Split], Tensor], split: Split, fold: np.ndarray, n_folds: int
) -> Tensor:
    """Fit once for each pair of folds, leaving both out.

    Outer fold f is where a direction is scored, once. To choose its scale, the questions of every
    other fold g are steered by a fit without f **and** g, so that neither the scale nor the
    direction ever saw a question it is scored on.

    Parameters
    ----------
    fit : function Split -> Tensor (...)
    split : Split
        Of n questions, which may be others than those that are steered.
    fold : array of int, shape (n,)
        -1 for questions that belong to no fold and are left out of no fit.
    n_folds : int

    Returns
    -------
    Tensor, shape (K, K, ...)
        ``[f, g]`` is fitted without folds f and g; symmetric; ``[f, f]`` leaves out f alone.
    """
    fold = np.asarray(fold)
    fits: dict[tuple[int, int], Tensor] = {
        (f, g): fit(split.take((fold != f) & (fold != g)))
        for f in range(n_folds)
        for g in range(f, n_folds)
    }
    pairs = [[fits[min(f, g), max(f, g)] for g in range(n_folds)] for f in range(n_folds)]
    return torch.stack([torch.stack(row) for row in pairs])


def mean_norms(split: Split) -> Tensor:
    """Mean norm of the residual stream at every layer, the unit of the scale alpha; (L + 1,)."""
    layers = range(split.residuals.shape[1])
    by_layer = [split.residuals[:, layer].float().norm(dim=-1) for layer in layers]
    return torch.stack(by_layer, 1).mean(0)


def patched(h: Tensor, differences: Tensor, basis: Tensor, ranks: Sequence[int]) -> Tensor:
    """Residuals moved by the part of a change that lies in a subspace.

    ``h + B_r^T B_r delta`` with the first r rows of the basis. If the change is the question's own
    to the last layer, r = 0 is the layer as it is, full rank the last layer: how fast readings
    approach those of the last layer says how low-dimensional the change between the two is.

    Parameters
    ----------
    h, differences : Tensor, shape (m, d)
    basis : Tensor, shape (R, d)
        From :func:`principal`, of a fit on other questions.
    ranks : sequence of int
        Those above R give all of the basis.

    Returns
    -------
    Tensor, shape (m, ranks, d)
    """
    parts = differences @ basis.T
    return torch.stack([h + parts[:, :rank] @ basis[:rank] for rank in ranks], 1)


def describe(
    direction: Direction, fitted: Tensor, primary: Tensor, split: Split, layers: Sequence[int]
) -> list[dict]:
    """Describe the fit scored on each fold, over all questions.

    Parameters
    ----------
    direction : Direction
    fitted, primary : Tensor, shape (K, K, layers or 1, d)
        From :func:`cross_fit`: of this and of the first estimator.
    split : Split
        All questions.
    layers : sequence of int
        At which directions may be added.

    Returns
    -------
    list of dict
        The fields of the direction; one a fold and layer 1 .. L, or one a fold and layer of
        ``layers`` if the direction or the first estimator's depends on it: ``cosine``, the mean
        cosine of the direction with the block update into that layer (NaN at layer 0, which no
        block writes); ``explained_variance``, the mean squared cosine; ``cosine_primary`` with the
        first estimator's; ``agreement``, the lowest cosine of this fold's direction with another
        fold's.
    """
    n_layers = split.residuals.shape[1] - 1
    by_layer = max(fitted.shape[2], primary.shape[2]) > 1
    rows = []
    for place, layer in enumerate(layers if by_layer else range(1, n_layers + 1)):
        own = _scored(fitted, place)
        update = _update_into(split.residuals, layer)
        cosines = update @ own.T
        with_primary = (own * _scored(primary, place)).sum(-1)
        agreement = (own @ own.T).amin(-1)
        rows += [
            {
                **asdict(direction),
                "fold": fold,
                "layer": layer,
                "cosine": cosines[:, fold].mean().item(),
                "explained_variance": cosines[:, fold].pow(2).mean().item(),
                "cosine_primary": with_primary[fold].item(),
                "agreement": agreement[fold].item(),
            }
            for fold in range(len(own))
        ]
    return rows


def _update_into(residuals: Residuals | Tensor, layer: int) -> Tensor:
    """Unit updates of the block that writes a layer, NaN at layer 0; (n, d)."""
    if layer == 0:
        return torch.full((len(residuals), residuals.shape[-1]), torch.nan)
    return unit_updates(residuals[:, layer - 1 : layer + 1])[:, 0]


def _scored(fitted: Tensor, place: int) -> Tensor:
    """Directions that score each fold; (K, d)."""
    return fitted.diagonal()[place if fitted.shape[2] > 1 else 0].T
