"""Bootstrap, null floor, intervals: against loops over resamples and against known truths."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax
from statsmodels.stats.multitest import multipletests

from layercal.metrics import calibration, readings, registry, resampling


def sample(rng, n):
    confidence = rng.uniform(0.25, 1, n)
    return confidence, (rng.random(n) < confidence**2).astype(float)


def test_resample_weights():
    weights = resampling.resample_weights(80, 5, seed=3)
    assert (weights.sum(1) == 80).all()
    np.testing.assert_array_equal(weights, resampling.resample_weights(80, 5, seed=3))
    assert not np.array_equal(weights, resampling.resample_weights(80, 5, seed=4))


def test_clusters_are_drawn_whole(rng):
    """Against a loop that draws clusters by name and gathers their rows."""
    cluster = np.array([0, 1, 1, 2, 5, 5, 5, 3, 4, 1])
    weights = resampling.cluster_weights(cluster, 200, seed=3)
    drawn = resampling.resample_weights(6, 200, seed=3)
    values = rng.random(10)
    for draw in range(200):
        rows = [
            r
            for c in range(6)
            for _ in range(int(drawn[draw, c]))
            for r in range(10)
            if cluster[r] == c
        ]
        assert weights[draw] @ values / 10 == pytest.approx(values[rows].mean())
    np.testing.assert_allclose(weights.sum(1), 10, rtol=1e-6)
    alone = resampling.cluster_weights(np.arange(3, 83), 5, seed=3)
    np.testing.assert_array_equal(alone, resampling.resample_weights(80, 5, seed=3))


def test_translations_of_one_question_count_once(rng):
    """Seven copies of every answer say no more than one: the interval must not shrink."""
    logits, answer = rng.normal(size=(1, 60, 4)), rng.integers(0, 4, 60)
    once = readings.Readings(logits, answer, {})
    copied = readings.Readings(
        np.repeat(logits, 7, 1), np.repeat(answer, 7), {}, np.repeat(np.arange(60), 7)
    )
    for one, other in zip(
        *(
            readings.metric_table(read, [10], [1], 300, 0).to_dict("records")
            for read in (once, copied)
        ),
        strict=True,
    ):
        if one["metric"] in ("accuracy", "ece", "classwise_ece", "brier"):
            for bound in ("value", "ci_low", "ci_high"):
                assert other[bound] == pytest.approx(one[bound], abs=1e-6), one["metric"]


def test_resampled_gaps_are_those_of_the_resampled_questions(rng):
    """At scale 1 the family of errors is the plain bootstrap: the metric of repeated rows."""
    confidence, correct = sample(rng, 80)
    p = rng.dirichlet(np.ones(4), 80)
    answer = rng.integers(0, 4, 80)
    weights = resampling.resample_weights(80, 6, seed=3)
    one = list(resampling.SCALES).index(1)
    samples = {
        "ece": registry.ece_sample(confidence, correct, weights),
        "classwise": registry.classwise_sample(p, answer, weights),
    }
    for draw in range(6):
        rows = np.repeat(np.arange(80), weights[draw].astype(int))
        expected = {
            "ece": calibration.ece(confidence[rows], correct[rows]),
            "classwise": calibration.classwise_ece(p[rows], answer[rows]),
        }
        for name, found in samples.items():
            assert found.errors()[one, draw] == pytest.approx(expected[name], abs=1e-6)


def test_estimates_are_the_metrics(rng):
    confidence, correct = sample(rng, 300)
    p = rng.dirichlet(np.ones(4), 300)
    answer = rng.integers(0, 4, 300)
    weights = resampling.resample_weights(300, 10, seed=0)
    pair = confidence, correct
    expected = {
        registry.ece_sample(*pair, weights, 15): calibration.ece(*pair, 15),
        registry.ece_sample(*pair, weights, 10, "mass"): calibration.ece(*pair, 10, "mass"),
        registry.mce_sample(*pair, weights, 15): calibration.mce(*pair, 15),
        registry.mce_sample(*pair, weights, 15, 20): calibration.mce(*pair, 15, 20),
        registry.debiased_sample(*pair, weights): calibration.debiased_ece(*pair),
        registry.smooth_sample(*pair, weights): calibration.smooth_ece(*pair),
        registry.classwise_sample(p, answer, weights): calibration.classwise_ece(p, answer),
    }
    for found, value in expected.items():
        assert found.estimate == pytest.approx(float(value), abs=1e-4)
    assert registry.mce_sample(*pair, weights, 10, 301) is None


def test_auroc_resamples_like_the_bootstrap(rng):
    confidence, correct = sample(rng, 300)
    values = readings.auroc_values(confidence, correct == 1)
    assert values.mean() == pytest.approx(calibration.auroc(confidence, correct))
    weights = resampling.resample_weights(300, 400, seed=0)
    rows = [np.repeat(np.arange(300), row.astype(int)) for row in weights]
    exact = np.array([calibration.auroc(confidence[r], correct[r]) for r in rows])
    linear = weights @ values / 300
    assert np.std(linear) == pytest.approx(np.std(exact), rel=0.05)
    assert np.corrcoef(linear, exact)[0, 1] > 0.99
    assert np.isnan(readings.auroc_values(confidence, np.ones(300, bool))).all()


def test_draw_outcomes_follow_the_probabilities(rng):
    p = rng.dirichlet(np.ones(4), 50)
    uniform = rng.random((4000, 50), np.float32)
    correct, by_option = resampling.draw_outcomes(p, uniform)
    np.testing.assert_allclose(correct.mean(0), p.max(1), atol=0.04)
    np.testing.assert_allclose(np.stack(by_option, -1).mean(0), p, atol=0.04)
    assert (sum(by_option) == 1).all()
    predicted = p.argmax(1)
    for question in range(50):
        drawn = by_option[predicted[question]][:, question]
        np.testing.assert_array_equal(drawn, correct[:, question])


def floor(confidence, draws=1000):
    weights = np.ones((1, len(confidence)), np.float32)
    uniform = np.random.default_rng(1).random((draws, len(confidence)), np.float32)
    made = registry.ece_sample(confidence, np.ones(len(confidence)), weights)
    return made.null([(uniform < confidence).astype(np.float32)])


def test_null_floor_is_that_of_calibrated_models(rng):
    """The floor equals the ECE of outcomes drawn here, independently, from the confidences."""
    confidence = softmax(rng.normal(size=(285, 4)) * 1.5, -1).max(-1)
    found = floor(confidence, 2000)
    drawn = [calibration.ece(confidence, rng.random(285) < confidence) for _ in range(400)]
    error = 4 * np.std(drawn) / np.sqrt(len(drawn))
    assert found.mean() == pytest.approx(np.mean(drawn), abs=error)
    assert np.quantile(found, 0.95) == pytest.approx(np.quantile(drawn, 0.95), abs=0.008)


@pytest.mark.parametrize(("n", "mean"), [(285, 0.053), (1000, 0.029), (4705, 0.013)])
def test_null_floor_shrinks_with_n(rng, n, mean):
    """Figures known for confidences spread evenly over [0.25, 1]."""
    assert floor(rng.uniform(0.25, 1, n)).mean() == pytest.approx(mean, abs=0.003)


def test_null_floor_of_mce_is_high(rng):
    """At 15 bins and n = 285 a calibrated model shows an MCE of up to 0.74 where bins are small."""
    confidence = softmax(rng.normal(size=(285, 4)) * 1.2, -1).max(-1)
    weights = np.ones((1, 285), np.float32)
    uniform = rng.random((1000, 285), np.float32)
    outcome = [(uniform < confidence).astype(np.float32)]
    ones = np.ones(285)
    unfiltered = registry.mce_sample(confidence, ones, weights, 15).null(outcome)
    filtered = registry.mce_sample(confidence, ones, weights, 15, 30).null(outcome)
    assert np.quantile(unfiltered, 0.95) > 0.3
    assert np.quantile(filtered, 0.95) < 0.25


def test_interval_of_a_mean_covers(rng):
    hits = 0
    for seed in range(400):
        values = rng.normal(size=200)
        weights = resampling.resample_weights(200, 400, seed)
        low, high = resampling.interval(values.mean(), weights @ values / 200)
        hits += low <= 0 <= high
    assert 0.92 <= hits / 400 <= 0.98


def test_interval_of_an_error_holds_it_and_starts_at_zero_when_chance_explains_it(rng):
    weights = resampling.resample_weights(285, 500, 0)
    confidence = rng.uniform(0.25, 1, 285)
    calibrated = (rng.random(285) < confidence).astype(float)
    low, high = resampling.error_interval(registry.ece_sample(confidence, calibrated, weights))
    assert low == 0 < high
    wrong = np.zeros(285)
    low, high = resampling.error_interval(registry.ece_sample(confidence, wrong, weights))
    assert low < confidence.mean() < high
    assert low == pytest.approx(confidence.mean(), abs=0.05)


def test_degenerate_samples_have_finite_intervals():
    weights = resampling.resample_weights(20, 200, 0)
    for confidence, correct in ((1.0, 1.0), (1.0, 0.0), (0.25, 1.0)):
        made = registry.ece_sample(np.full(20, confidence), np.full(20, correct), weights)
        low, high = resampling.error_interval(made)
        assert low == pytest.approx(abs(confidence - correct), abs=1e-6)
        assert high == pytest.approx(abs(confidence - correct), abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_holm_equals_statsmodels(p_values):
    expected = multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(resampling.holm(p_values), expected)


def test_equivalence_needs_the_whole_interval():
    assert resampling.equivalent(-0.01, 0.015, 0.02)
    assert not resampling.equivalent(-0.03, 0.015, 0.02)
    assert not resampling.equivalent(-0.01, 0.05, 0.02)  # holds 0, and shows nothing
