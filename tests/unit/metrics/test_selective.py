"""Selective prediction against a naive loop, and against the code that HELM calls."""

import itertools

import calibration as helm_calibration
import numpy as np
import pytest

from layercal.metrics import selective


@pytest.fixture
def reading(rng):
    confidence = rng.uniform(0.25, 1, 200)
    return confidence, rng.random(200) < confidence**2


def test_the_curve_is_that_of_a_naive_loop(reading):
    confidence, correct = reading
    coverage, risk = selective.risk_coverage(confidence, correct)
    order = np.argsort(-confidence)
    for k in range(1, 201):
        assert coverage[k - 1] == k / 200
        assert risk[k - 1] == pytest.approx(1 - correct[order[:k]].mean())


def test_equal_confidences_count_as_in_the_mean_over_their_orders():
    confidence, correct = np.array([0.9, 0.5, 0.5, 0.5, 0.3]), np.array([0, 1, 0, 0, 1])
    curves = []
    for order in itertools.permutations([1, 2, 3]):
        picked = correct[[0, *order, 4]]
        curves.append(1 - picked.cumsum() / np.arange(1, 6))
    np.testing.assert_allclose(
        selective.risk_coverage(confidence, correct)[1], np.mean(curves, 0), atol=1e-12
    )
    shuffled = np.array([3, 0, 4, 1, 2])
    again = selective.risk_coverage(confidence[shuffled], correct[shuffled])[1]
    np.testing.assert_array_equal(again, selective.risk_coverage(confidence, correct)[1])


def test_excess_area_is_zero_for_the_best_order_and_largest_for_the_worst(rng):
    correct = rng.random(100) < 0.6
    best, worst = correct + rng.uniform(0, 0.1, 100), rng.uniform(0, 0.1, 100) - correct
    assert selective.excess_aurc(best.clip(0, 1), correct) == pytest.approx(0)
    random = np.mean([selective.excess_aurc(rng.random(100), correct) for _ in range(50)])
    assert 0 < random < selective.excess_aurc((worst + 1) / 2, correct)
    # confidences that are all alike know nothing: the risk is that of answering all
    assert selective.aurc(np.full(100, 0.5), correct) == pytest.approx(1 - correct.mean())


def test_accuracy_at_a_coverage(reading):
    confidence, correct = reading
    top = np.argsort(-confidence)
    half = correct[top[:100]].mean()
    assert selective.accuracy_at(confidence, correct, 0.5) == pytest.approx(half)
    assert selective.accuracy_at(confidence, correct, 1) == pytest.approx(correct.mean())
    assert selective.accuracy_at(confidence, correct, 0.001) == correct[top[0]]


def test_helm_names_are_what_helm_computes(reading):
    """helm/benchmark/metrics/basic_metrics.py calls these functions of uncertainty-calibration."""
    confidence, correct = reading
    own = selective.helm(confidence, correct)
    area, top = helm_calibration.get_selective_stats(confidence, correct)
    assert own["selective_cov_acc_area"] == pytest.approx(area)
    assert own["selective_acc@10"] == pytest.approx(top)
    labels = correct.astype(int)
    scaled = helm_calibration.get_platt_scaler(confidence, labels)(confidence)
    for name, values in (("", confidence), ("platt_", scaled)):
        ten = helm_calibration.get_ece_em(values, labels, num_bins=10)
        one = helm_calibration.get_ece(values, labels, num_bins=1)
        assert own[f"{name}ece_10_bin"] == pytest.approx(ten, abs=1e-9)
        assert own[f"{name}ece_1_bin"] == pytest.approx(one, abs=1e-9)


def test_answers_that_are_all_right_have_no_platt_scaling(rng):
    found = selective.helm(rng.uniform(0.3, 1, 50), np.ones(50, bool))
    assert np.isnan([found["platt_ece_10_bin"], found["platt_ece_1_bin"]]).all()
    assert found["selective_acc@10"] == found["selective_cov_acc_area"] == 1
