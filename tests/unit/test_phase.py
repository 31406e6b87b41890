"""The correction phase on curves whose answer is known, and on models that have none."""

import numpy as np
import pytest

from layercal import phase, readings, resampling


def simulate(rng, accuracy, confidence, n=1000):
    """Readings of a model with these curves: each layer answers right with its accuracy."""
    layers = len(accuracy)
    answer = rng.integers(0, 4, n)
    right = rng.random(n) < np.array(accuracy)[:, None]
    predicted = np.where(right, answer, (answer + rng.integers(1, 4, n)) % 4)
    top = np.array(confidence)[:, None]
    logits = np.broadcast_to(np.log((1 - top) / 3)[..., None], (layers, n, 4)).copy()
    np.put_along_axis(
        logits, predicted[..., None], np.broadcast_to(np.log(top), (layers, n))[..., None], 2
    )
    return readings.Readings(logits, answer, {})


def detect(read, tolerance=0.02):
    weights = resampling.resample_weights(len(read.answer), 500, seed=0)
    return phase.detect(read.confidence, read.correct, weights, chance=0.25, tolerance=tolerance)


@pytest.mark.parametrize(
    ("accuracy", "expected"),
    [
        ([0.25, 0.3, 0.5, 0.51, 0.5], 2),
        ([0.5, 0.5, 0.5], 0),
        ([0.5, 0.5, 0.4, 0.5], 3),  # an excursion late in the network resets it
        ([0.1, 0.2, 0.3, 0.5], 3),
        ([0.48, 0.5], 0),  # a difference of exactly the tolerance lies within it
        ([0.479, 0.5], 1),
        ([0.53, 0.5], 1),  # better than final is not settled either
    ],
)
def test_decision_layer(accuracy, expected):
    assert phase.decision_layer(np.array(accuracy), 0.02) == expected


def test_phase_is_found_where_it_was_put(rng):
    accuracy = [0.25, 0.25, 0.6, 0.6, 0.6, 0.6]
    found = detect(simulate(rng, accuracy, [0.3, 0.4, 0.8, 0.95, 0.7, 0.6], 3000), 0.05)
    assert found["exists"]
    assert (found["decision_layer"], found["peak_layer"], found["final_layer"]) == (2, 3, 5)
    assert found["correction"] == pytest.approx(0.35, abs=0.05)
    assert found["ci_low"] < found["correction"] < found["ci_high"]
    assert found["reason"].startswith("The phase exists")


def test_no_phase_at_chance(rng):
    """A model that guesses, sure of itself early and modest late: its ECE falls all the same."""
    found = detect(simulate(rng, [0.25] * 5, [0.9, 0.9, 0.8, 0.5, 0.3]), 0.1)
    assert found["correction"] > 0.3
    assert not found["exists"]
    assert "not above chance" in found["reason"]


def test_no_phase_when_calibration_stays(rng):
    found = detect(simulate(rng, [0.25, 0.6, 0.6, 0.6], [0.3, 0.9, 0.9, 0.9]), 0.1)
    assert not found["exists"]


def test_no_phase_when_the_last_layer_is_worst(rng):
    found = detect(simulate(rng, [0.25, 0.6, 0.6, 0.6], [0.3, 0.6, 0.7, 0.95]), 0.1)
    assert found["peak_layer"] == found["final_layer"] == 3
    assert not found["exists"]
    assert found["correction"] == found["ci_low"] == found["ci_high"] == 0
    assert "largest at the final layer" in found["reason"]
    assert found["rises"]


def test_a_last_layer_that_is_worst_by_chance_does_not_rise(rng):
    found = detect(simulate(rng, [0.25, 0.6, 0.6, 0.59], [0.3, 0.8, 0.8, 0.8], 200), 0.1)
    assert found["peak_layer"] == found["final_layer"] == 3
    assert not found["exists"] and not found["rises"]


def test_accuracy_that_settles_at_the_last_layer_decides_nothing(rng):
    """There is no layer whose ECE the last one's could be compared with."""
    found = detect(simulate(rng, [0.25, 0.4, 0.6], [0.3, 0.9, 0.6]))
    assert found["decision_layer"] == found["final_layer"] == 2
    assert not found["exists"] and not found["rises"]
    assert "settles at the final layer only" in found["reason"]


def test_sweep_layers_keep_both_ends():
    assert phase.sweep_layers(24, 28, 8) == [24, 25, 26, 27, 28]
    assert phase.sweep_layers(30, 30, 8) == [30]
    thinned = phase.sweep_layers(3, 30, 4)
    assert thinned == [3, 12, 21, 30]
