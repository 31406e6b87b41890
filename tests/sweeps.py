"""Sweeps of logits whose right verdict is known."""

from unittest import mock

import numpy as np
import pandas as pd
from scipy.special import softmax

from layercal.metrics.readings import Group
from layercal.steering import baselines, evaluation, tally, verdicts
from layercal.steering.fitted import Direction
from layercal.steering.steered import Steered

ALPHAS = [-1.0, 0.0, 0.5, 1.0]
PRIMARY = Direction(name="update-mean", kind="estimator", estimator="update-mean")
STILL = [1.0, 1.0, 1.0, 1.0]  # a norm that does not grow


def tallied(logits, answer, fold, part=0, alphas=ALPHAS):
    """Sums over controls whose logits are (n, R, layers, alphas, n_options)."""
    cell = pd.factorize(fold * 10 + part)[0]
    scored = tally.score_rows(np.moveaxis(logits, 0, -2), answer, 10)  # R, layers, alphas, n, ...
    sums = np.stack([scored[..., cell == one, :].sum(-2) for one in range(cell.max() + 1)])
    sums = np.moveaxis(sums, 1, 2)
    made = {"cell": cell, "fold": fold, "alphas": alphas, "accuracy_margin": 0.02}
    return tally.Tally(sums={"through-network": sums, "lens": sums}, **made)


def sweep(
    rng,
    factors,
    n=600,
    n_controls=4,
    sharpness=3.0,
    control_factors=None,
    frozen=None,
    growth=None,
    part=0,
):
    """Readings of a model whose logits are ``sharpness`` times too large.

    At each scale the fitted direction multiplies them by a factor, a control by another, the same
    for every question: what is right is known. ``frozen``: the factors with the norm frozen.
    ``growth``: of the norm, by default as if all of the factors were its doing. ``part``: of the
    questions, by which sums of the controls are kept apart.
    """
    folds = 3
    calibrated = rng.normal(size=(n, 4)) * 1.2
    p = softmax(calibrated, -1)
    answer = (rng.random((n, 1)) > p.cumsum(-1)).sum(-1).clip(0, 3)
    logits = sharpness * calibrated
    factors = np.array(factors)
    control_factors = np.ones((n_controls, 1)) if control_factors is None else control_factors
    control_factors = np.broadcast_to(control_factors, (n_controls, len(ALPHAS)))

    def scaled(by_direction):
        return logits[:, None, None, None] * np.array(by_direction)[None, :, None, :, None]

    def fits(factors):
        return scaled([factors] * folds)[:, None]

    fold = np.arange(n) % folds
    frozen = factors if frozen is None else np.array(frozen)
    growth = 1 / np.abs(factors) if growth is None else growth
    return evaluation.Sweep(
        steered={
            "through-network": Steered(
                fitted=fits(factors),
                frozen=fits(frozen),
                controls=scaled(control_factors[:1]),
                growth=np.broadcast_to(growth, (n, folds, 1, 4)),
            )
        },
        controls=tallied(scaled(control_factors), answer, fold, part),
        answer=answer,
        fold=fold,
        cluster=np.arange(n),
        norms=np.array([1.0, 2.0, 3.0]),
        directions=[PRIMARY],
        layers=[2],
        alphas=ALPHAS,
        accuracy_margin=0.02,
        n_bins=10,
        draws=300,
        seed=0,
    )


def steered(made, above_chance=True, **rules):
    """Verdicts on what is no baseline: baselines take two thirds of the time, and change none."""
    with mock.patch.object(baselines, "BASELINES", {}):
        rows = verdicts.summarise({Group(): (made, above_chance)}, **rules)
    return [row for row in rows if row["kind"] != "baseline"]


def logits_of(made):
    """Logits that can be changed: steered, and steered with the norm frozen, of each mode."""
    return [logits for one in made.steered.values() for logits in (one.fitted, one.frozen)]
