"""Choice of scales, dose-response and verdicts, on logits whose right verdict is known."""

import numpy as np
import pytest
from scipy.special import softmax
from sweeps import ALPHAS, PRIMARY, STILL, logits_of, steered, sweep

from layercal.metrics import calibration, scoring
from layercal.metrics.readings import Group
from layercal.steering import evaluation, verdicts


def test_baselines_change_no_other_verdict(rng):
    made = sweep(rng, [1.5, 1, 0.7, 1 / 3])
    rows = verdicts.summarise({Group(): (made, True)})
    assert steered(made) == [row for row in rows if row["kind"] != "baseline"] != rows


def test_selection_never_worse_on_its_own_split_and_abstains(rng):
    alphas = [-1.0, 0.0, 1.0]
    for _ in range(50):
        nll = rng.exponential(size=(3, 60))
        correct = rng.random((3, 60)) < rng.uniform(0.2, 0.9, (3, 1))
        best = evaluation.select_scale(nll, correct, alphas, 0.02)
        assert nll[best].mean() <= nll[1].mean()
        assert correct[best].mean() >= correct[1].mean() - 0.02
    same = np.repeat(rng.exponential(size=(1, 60)), 3, 0)
    assert evaluation.select_scale(same, same > 0.6, alphas, 0.02) == 1


def test_scored_questions_do_not_influence_their_own_scale(rng):
    """Changing what a fold's own questions show must not change the scale chosen for it."""
    alphas, fold = [0.0, 0.5, 1.0], np.arange(90) % 3
    nll = rng.exponential(size=(3, 3, 90))
    correct = rng.random((3, 3, 90)) < 0.5
    chosen = evaluation.cross_select(nll, correct, fold, alphas, 0.5)
    for f in range(3):
        other = nll.copy(), correct.copy()
        other[0][f][:, fold == f] = rng.exponential(size=(3, 30))
        other[1][f][:, fold == f] = rng.random((3, 30)) < 0.9
        again = evaluation.cross_select(*other, fold, alphas, 0.5)
        assert again[f] == chosen[f]


def test_dose_response_is_the_metric_at_each_setting(rng):
    made = sweep(rng, [1.5, 1, 0.7, 1 / 3])
    table = evaluation.dose_response(made)
    assert len(table) == (2 * 6 + 4) * len(ALPHAS)
    kinds = table.groupby("direction")["kind"].unique().map(list).to_dict()
    matched = {"matched control": ["matched"], "matched controls": ["matched"]}
    assert kinds == {"update-mean": ["estimator"], **matched}
    assert (table["eta"] == table["alpha"] * 3.0).all()
    for a, alpha in enumerate(ALPHAS):
        p = softmax(made.steered["through-network"].fitted[:, 0, 0, 0, a], -1)
        rows = table[(table["direction"] == "update-mean") & (table["alpha"] == alpha)]
        rows = rows.set_index("metric")
        correct = p.argmax(-1) == made.answer
        assert rows.loc["ece", "value"] == pytest.approx(calibration.ece(p.max(-1), correct))
        assert rows.loc["accuracy", "value"] == pytest.approx(correct.mean())
        assert rows.loc["confidence", "value"] == pytest.approx(p.max(-1).mean())
        nll = -np.log(p[np.arange(600), made.answer])
        assert rows.loc["nll", "value"] == pytest.approx(nll.mean())
        for metric in ("accuracy", "nll", "brier"):
            one = rows.loc[metric]
            assert one["ci_low"] < one["value"] < one["ci_high"]


def test_the_band_of_controls_is_that_of_each_of_them(rng):
    factors = rng.uniform(0.2, 1.5, (40, 4))
    made = sweep(rng, [1, 1, 1, 1], n_controls=40, control_factors=factors)
    table = evaluation.dose_response(made)
    band = table[table["direction"] == "matched controls"]
    calibrated = made.unsteered("through-network", 0)
    for a, alpha in enumerate(ALPHAS):
        p = [softmax(factor * calibrated, -1) for factor in factors[:, a]]
        ece = [calibration.ece(one.max(-1), one.argmax(-1) == made.answer) for one in p]
        nll = [-np.log(one[np.arange(600), made.answer]).mean() for one in p]
        for metric, values in (("ece", ece), ("nll", nll)):
            row = band[(band["metric"] == metric) & (band["alpha"] == alpha)].iloc[0]
            ends = np.quantile(values, [0.025, 0.975])
            np.testing.assert_allclose(
                row[["value", "ci_low", "ci_high"]].astype(float), [np.mean(values), *ends]
            )


def test_each_question_is_read_under_the_fit_without_its_fold(rng):
    """Fits of the other folds get absurd logits: held-out readings must not touch them."""
    made = sweep(rng, [1, 1, 1, 1])
    logits = made.steered["through-network"].fitted
    expected = made.held_out("through-network", PRIMARY).copy()
    np.testing.assert_array_equal(expected[0, 1], made.unsteered("through-network", 0))
    for fit in range(3):
        rows = np.ix_(made.fold != fit, [0], [fit])
        logits[rows] = 1e3 * rng.normal(size=logits[rows].shape)
    np.testing.assert_array_equal(made.held_out("through-network", PRIMARY), expected)


def test_a_direction_that_corrects_is_recognised(rng):
    (found,) = steered(sweep(rng, [1.5, 1, 0.7, 1 / 3], n_controls=99, growth=STILL))
    assert found["alphas"] == [1.0, 1.0, 1.0] and found["at_edge"]
    assert found["outcome"] == "lowered"
    assert found["nll_change_high"] < 0 and found["brier_change_high"] < 0
    assert found["ece_after"] < found["ece_before"] / 2
    assert found["accuracy_change"] == 0 and found["accuracy_kept"]
    assert found["controls_nll_change"] == 0 and found["controls_nll_p"] == 0.01
    assert "NLL lowered" in found["verdict"] and "edge of the grid" in found["verdict"]


def test_a_best_scale_inside_the_grid_is_not_flagged(rng):
    (found,) = steered(sweep(rng, [1.5, 1, 1 / 3, 0.1]))
    assert found["alphas"] == [0.5, 0.5, 0.5] and not found["at_edge"]
    assert "edge of the grid" not in found["verdict"]


def test_a_gain_that_controls_share_is_not_credited(rng):
    shared = [1.5, 1, 0.7, 1 / 3]
    (found,) = steered(sweep(rng, shared, control_factors=np.array([shared])))
    assert found["outcome"] == "lowered, not shown beyond matched controls"
    assert found["controls_nll_change"] == pytest.approx(found["nll_change"])
    assert found["controls_ece_change"] == pytest.approx(found["ece_change"])
    assert found["controls_nll_p"] == 1


def test_what_there_was_to_gain_is_an_interval_and_hides_no_harm(rng):
    """A calibrated model, harmed beyond what its null floor of ECE would show."""
    made = sweep(rng, [1.5, 1, 0.7, 0.5], sharpness=1.0)
    (found,) = steered(made)
    assert found["ece_before"] <= found["ece_null_high"]
    ends = f"between {found['ece_before_low']:.3f} and {found['ece_before_high']:.3f}"
    assert found["ece_before_low"] == 0 and f"there is {ends} of it to gain" in found["verdict"]


def test_a_harm_is_called_one_where_ece_was_within_its_floor(rng):
    """Scale 1 helps on the questions it is chosen on, and sharpens those that it is scored on."""
    made = sweep(rng, [1, 1, 1, 1], sharpness=1.0)
    helps = np.log(0.05 + np.eye(4)[made.answer])
    for logits in logits_of(made):
        for fit in range(3):
            own = made.fold == fit
            logits[own, 0, fit, 0, 3] *= 4
            logits[~own, 0, fit, 0, 3] += helps[~own]
    (found,) = steered(made)
    assert found["alphas"] == [1, 1, 1] and found["ece_before"] <= found["ece_null_high"]
    assert found["outcome"] == "raised" and found["nll_change_low"] > 0
    assert "NLL raised" in found["verdict"] and "to gain at n = 600" in found["verdict"]


def test_a_direction_that_does_nothing_is_left_alone(rng):
    (found,) = steered(sweep(rng, [1, 1, 1, 1]))
    assert found["alphas"] == [0.0, 0.0, 0.0]
    assert found["nll_change"] == 0 and found["controls_nll_p"] == 1
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
