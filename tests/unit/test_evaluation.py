"""Choice of scales, dose-response and verdicts, on logits whose right verdict is known."""

from unittest import mock

import numpy as np
import pytest
from scipy.special import softmax

from layercal import baselines, calibration, evaluation, scoring, verdicts

ALPHAS = [-1.0, 0.0, 0.5, 1.0]


def sweep(rng, factors, n=600, n_random=4, sharpness=3.0, random_factors=None, frozen=None):
    """Readings of a model whose logits are ``sharpness`` times too large.

    At each scale the fitted direction multiplies them by a factor, a random one by another, the
    same for every question: what is right is known. ``frozen``: the factors with the norm frozen.
    """
    folds = 3
    calibrated = rng.normal(size=(n, 4)) * 1.2
    p = softmax(calibrated, -1)
    answer = (rng.random((n, 1)) > p.cumsum(-1)).sum(-1).clip(0, 3)
    logits = sharpness * calibrated
    factors = np.array(factors)
    random_factors = np.ones(len(ALPHAS)) if random_factors is None else np.array(random_factors)
    by_direction = [factors] * folds + [random_factors] * n_random
    scaled = logits[:, None, None, None] * np.array(by_direction)[None, :, None, :, None]
    frozen = np.array([factors if frozen is None else np.array(frozen)] * folds)
    return evaluation.Sweep(
        logits={
            "through-network": scaled,
            "through-network-frozen": logits[:, None, None, None] * frozen[None, :, None, :, None],
        },
        answer=answer,
        fold=np.arange(n) % folds,
        cluster=np.arange(n),
        norms=np.array([1.0, 2.0, 3.0]),
        variants=["update-mean"],
        layers=[2],
        alphas=ALPHAS,
        accuracy_margin=0.02,
        n_folds=folds,
        n_bins=10,
        draws=300,
        seed=0,
    )


def steered(made, above_chance=True):
    """Verdicts on what is no baseline: baselines take two thirds of the time, and change none."""
    with mock.patch.object(baselines, "BASELINES", ()):
        return verdicts.summarise(made, ["update-mean"], above_chance)


def test_baselines_change_no_other_verdict(rng):
    made = sweep(rng, [1.5, 1, 0.7, 1 / 3])
    rows = verdicts.summarise(made, ["update-mean"], True)
    assert steered(made) == [row for row in rows if row["kind"] != "baseline"] != rows


def test_selection_never_worse_on_its_own_split_and_abstains(rng):
    alphas = [-1.0, 0.0, 1.0]
    for _ in range(50):
        confidence = rng.uniform(0.25, 1, (3, 60))
        correct = rng.random((3, 60)) < rng.uniform(0.2, 0.9, (3, 1))
        best = evaluation.select_alpha(confidence, correct, alphas, 0.02)
        errors = calibration.ece(confidence, correct)
        assert errors[best] <= errors[1]
        assert correct[best].mean() >= correct[1].mean() - 0.02
    same = np.repeat(rng.uniform(0.25, 1, (1, 60)), 3, 0)
    assert evaluation.select_alpha(same, same > 0.6, alphas, 0.02) == 1


def test_scored_questions_do_not_influence_their_own_scale(rng):
    """Changing what a fold's own questions show must not change the scale chosen for it."""
    alphas, fold = [0.0, 0.5, 1.0], np.arange(90) % 3
    confidence = rng.uniform(0.25, 1, (3, 3, 90))
    correct = rng.random((3, 3, 90)) < 0.5
    chosen = evaluation.cross_select(confidence, correct, fold, alphas, 0.5)
    for f in range(3):
        other = confidence.copy(), correct.copy()
        other[0][f][:, fold == f] = rng.uniform(0.25, 1, (3, 30))
        other[1][f][:, fold == f] = rng.random((3, 30)) < 0.9
        again = evaluation.cross_select(*other, fold, alphas, 0.5)
        assert again[f] == chosen[f]


def test_dose_response_is_the_metric_at_each_setting(rng):
    made = sweep(rng, [1.5, 1, 0.7, 1 / 3])
    table = evaluation.dose_response(made)
    assert len(table) == 5 * len(ALPHAS) * 4
    assert set(table["direction"]) == {"update-mean", *(f"random-{i:02d}" for i in range(4))}
    assert (table["eta"] == table["alpha"] * 3.0).all()
    for a, alpha in enumerate(ALPHAS):
        p = softmax(made.logits["through-network"][:, 0, 0, a], -1)
        rows = table[(table["direction"] == "update-mean") & (table["alpha"] == alpha)]
        rows = rows.set_index("metric")
        correct = p.argmax(-1) == made.answer
        assert rows.loc["ece", "value"] == pytest.approx(calibration.ece(p.max(-1), correct))
        assert rows.loc["accuracy", "value"] == pytest.approx(correct.mean())
        assert rows.loc["confidence", "value"] == pytest.approx(p.max(-1).mean())
        accuracy = rows.loc["accuracy"]
        assert accuracy["ci_low"] < accuracy["value"] < accuracy["ci_high"]


def test_each_question_is_read_under_the_fit_without_its_fold(rng):
    """Fits of the other folds get absurd logits: held-out readings must not touch them."""
    made = sweep(rng, [1, 1, 1, 1])
    logits = made.logits["through-network"]
    expected = made.held_out("through-network", "update-mean").copy()
    np.testing.assert_array_equal(expected[0, 1], made.unsteered("through-network", 0))
    for fit in range(3):
        rows = np.ix_(made.fold != fit, [fit])
        logits[rows] = 1e3 * rng.normal(size=logits[rows].shape)
    np.testing.assert_array_equal(made.held_out("through-network", "update-mean"), expected)


def test_a_direction_that_corrects_is_recognised(rng):
    (found,) = steered(sweep(rng, [1.5, 1, 0.7, 1 / 3]))
    assert found["alphas"] == [1.0, 1.0, 1.0]
    assert found["outcome"] == "lowered"
    assert found["ece_change_high"] < 0
    assert found["ece_after"] < found["ece_before"] / 2
    assert found["accuracy_change"] == 0 and found["accuracy_kept"]
    assert found["random_relative_change_best"] == 0
    assert "ECE lowered" in found["verdict"]


def test_a_gain_that_random_directions_share_is_not_credited(rng):
    shared = [1.5, 1, 0.7, 1 / 3]
    (found,) = steered(sweep(rng, shared, random_factors=shared))
    assert found["outcome"] == "lowered, as by random directions"
    assert found["random_relative_change_best"] == pytest.approx(found["ece_relative_change"])


def test_nothing_to_gain_in_a_calibrated_model(rng):
    (found,) = steered(sweep(rng, [1.5, 1, 0.7, 0.5], sharpness=1.0))
    assert found["ece_before"] <= found["ece_null_high"]
    assert found["outcome"] == "nothing to gain"
    assert "already stands at its null floor" in found["verdict"]


def test_a_direction_that_does_nothing_is_left_alone(rng):
    (found,) = steered(sweep(rng, [1, 1, 1, 1]))
    assert found["alphas"] == [0.0, 0.0, 0.0]
    assert found["ece_change"] == 0
    assert found["outcome"] == "unchanged, no scale helps"


def test_accuracy_is_guarded(rng):
    """Scale 1 turns every answer round: calibrated or not, it must not be chosen."""
    (found,) = steered(sweep(rng, [1.5, 1, 0.7, -1 / 3]))
    assert 1.0 not in found["alphas"]


def test_rotations_of_a_question_are_right_together_in_the_null_floor():
    """Four rotations of each of a calibrated model's questions are no four times the questions."""
    beyond = {True: 0, False: 0}
    for seed in range(60):
        rng = np.random.default_rng(seed)
        logits, answer = 1.2 * rng.normal(size=(200, 4)), np.empty(200, int)
        for row, p in enumerate(softmax(logits, -1)):
            answer[row] = rng.choice(4, p=p)
        rotated = np.concatenate([np.roll(logits, -r, -1) for r in range(4)])
        rotated += 0.2 * rng.normal(size=rotated.shape)
        answers = np.concatenate([(answer - r) % 4 for r in range(4)])
        cluster = np.tile(np.arange(200), 4)
        for known in beyond:
            scored = scoring.Scoring(
                answer=answers,
                cluster=cluster if known else np.arange(800),
                question=cluster if known else None,
                draws=100,
            )
            found = scored.changes(rotated, rotated)
            assert found["n"] == (200 if known else 800)
            beyond[known] += found["ece_before"] > found["ece_null_high"]
    assert beyond[True] <= 8 and beyond[False] >= 15


def test_no_error_before_is_no_error_of_the_code():
    """Every answer right with confidence 1, as a large model may have it in a small group."""
    scored = scoring.Scoring(answer=np.zeros(30, int), cluster=np.arange(30), draws=100)
    sure = np.tile([200.0, 0, 0, 0], (30, 1))
    found = scored.changes(sure, sure)
    assert found["ece_before"] == found["ece_relative_change"] == 0
    assert 0 < scored.changes(sure, sure / 100)["ece_relative_change"] < np.inf
