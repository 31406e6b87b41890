"""The correction phase on curves whose answer is known, and on models that have none."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from layercal.metrics import accuracy, phase, readings, resampling


def simulate(rng, right, confidence, n=1000):
    """Readings of a model with these curves: each layer answers right with its accuracy."""
    layers = len(right)
    answer = rng.integers(0, 4, n)
    known = rng.random(n) < np.array(right)[:, None]
    predicted = np.where(known, answer, (answer + rng.integers(1, 4, n)) % 4)
    top = np.array(confidence)[:, None]
    logits = np.broadcast_to(np.log((1 - top) / 3)[..., None], (layers, n, 4)).copy()
    np.put_along_axis(
        logits, predicted[..., None], np.broadcast_to(np.log(top), (layers, n))[..., None], 2
    )
    return readings.Readings(logits, answer, {})


def detect(read, tolerance=0.02):
    weights = resampling.resample_weights(len(read.answer), 500, seed=0)
    known = accuracy.above_chance(read.logits[-1].argmax(-1), read.answer, draws=500)
    return phase.detect(read.confidence, read.correct, weights, known, tolerance)


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
    right = [0.25, 0.25, 0.6, 0.6, 0.6, 0.6]
    found = detect(simulate(rng, right, [0.3, 0.4, 0.95, 0.88, 0.78, 0.62], 3000), 0.05)
    assert found.exists and found.outcome == "exists"
    assert (found.decision_layer, found.peak_layer, found.final_layer) == (2, 2, 5)
    assert found.settled_layer == 2
    assert found.margin == pytest.approx(0.35 / 4, abs=0.01)
    assert found.correction == pytest.approx(0.33, abs=0.05)
    assert found.ci_low < found.correction < found.ci_high
    assert found.trend_low < found.trend < found.trend_high
    assert found.order_p == pytest.approx(1 / 24)
    assert found.resampled_share > 0.9
    assert found.reason.startswith("The phase exists")
    both = replace(found, order="as-is", tuned=found)
    content = json.loads(json.dumps(both.to_json()))
    assert content["exists"] and content["tuned"]["outcome"] == "exists"
    assert phase.Phase.from_json(content) == both


def test_no_phase_at_chance(rng):
    """A model that guesses, sure of itself early and modest late: its ECE falls all the same."""
    found = detect(simulate(rng, [0.25] * 5, [0.9, 0.9, 0.8, 0.5, 0.3]), 0.1)
    assert found.correction > 0.3
    assert found.outcome == "at chance" and not found.exists
    assert "as asked here" in found.reason and "not above chance" in found.reason


def test_no_phase_in_a_model_of_one_letter(rng):
    """It names the commonest letter, right in .3, and its confidence falls: nothing is known."""
    answer = rng.choice(4, 3000, p=[0.3, 0.3, 0.2, 0.2])
    logits = np.zeros((5, 3000, 4))
    logits[..., 0] = np.array([4, 3, 2, 1, 0.3])[:, None]
    found = detect(readings.Readings(logits, answer, {}))
    assert found.accuracy_final > 0.27 and found.top_letter == 1
    assert found.outcome == "at chance"
    assert "one letter makes up 100% of the predictions" in found.reason


def test_nothing_is_known_of_permuted_answers(rng):
    """The control that answers with varied letters but knows nothing."""
    read = simulate(rng, [0.25, 0.6, 0.6, 0.6, 0.6], [0.3, 0.95, 0.88, 0.78, 0.62], 3000)
    assert detect(read, 0.05).exists
    control = readings.Readings(read.logits, accuracy.permuted_answers(read.answer), {})
    found = detect(control, 0.05)
    assert found.outcome == "at chance" and found.top_letter < 0.3


def test_no_phase_when_calibration_stays(rng):
    found = detect(simulate(rng, [0.25, 0.6, 0.6, 0.6, 0.6], [0.3, 0.9, 0.9, 0.9, 0.9]), 0.1)
    assert found.outcome == "undecided" and "ECE is not shown to fall" in found.reason


def test_no_phase_when_calibration_gets_worse(rng):
    found = detect(simulate(rng, [0.25, 0.6, 0.6, 0.6, 0.6], [0.3, 0.6, 0.7, 0.85, 0.95]), 0.1)
    assert found.peak_layer == found.final_layer == 4
    assert found.outcome == "no phase" and found.rises
    assert found.correction == found.ci_low == found.ci_high == 0
    assert found.trend_high < 0
    assert "ECE rises" in found.reason and "at the last" in found.reason


def test_a_last_layer_that_is_worst_by_chance_does_not_rise(rng):
    found = detect(simulate(rng, [0.25, 0.6, 0.6, 0.6, 0.59], [0.3, 0.8, 0.8, 0.8, 0.8], 200), 0.1)
    assert found.outcome == "undecided" and not found.rises


def test_three_layers_do_not_make_a_trend(rng):
    found = detect(simulate(rng, [0.25, 0.6, 0.6, 0.6], [0.3, 0.95, 0.8, 0.62], 3000), 0.05)
    assert found.correction > 0.2 and found.trend_p < 0.001
    assert found.outcome == "undecided" and "too late to see" in found.reason


def test_accuracy_near_its_final_value_is_not_yet_settled(rng):
    """Of 100 questions, accuracies that come out about equal show no equality."""
    confidence = [0.3, 0.95, 0.88, 0.78, 0.62]
    layers = [
        simulate(rng, [right], [top], 100)
        for right, top in zip([0.25] + [0.6] * 4, confidence, strict=True)
    ]
    read = readings.Readings(np.concatenate([one.logits for one in layers]), layers[-1].answer, {})
    read.correct = np.concatenate([one.correct for one in layers])
    found = detect(read, 0.2)
    assert found.decision_layer == 1 and found.settled_layer == 4
    assert found.outcome == "undecided" and "takes more questions" in found.reason


def test_accuracy_that_settles_at_the_last_layer_decides_nothing(rng):
    """There is no layer whose ECE the last one's could be compared with."""
    found = detect(simulate(rng, [0.25, 0.4, 0.6], [0.3, 0.9, 0.6]))
    assert found.decision_layer == found.final_layer == 2
    assert found.outcome == "undecided" and not found.rises
    assert found.trend_p == found.order_p == 1


def test_order_against_all_orders(rng):
    """Chance of so many falls among pairs of layers, over all orders of the layers."""
    for ece in rng.random((5, 5)):
        falls = [
            sum(b < a for a, b in itertools.combinations(order, 2))
            for order in itertools.permutations(ece)
        ]
        assert phase.order_p(ece) == pytest.approx(np.mean(np.array(falls) >= falls[0]))


def test_settled_layers_stop_at_the_first_that_is_off(rng):
    right = rng.random((6, 4000)) < np.array([0.5, 0.5, 0.4, 0.5, 0.5, 0.5])[:, None]
    assert phase.settled_layer(right, 0.05, 0.02) == 3
    assert phase.settled_layer(right, 0.2, 0.15) == 0
    assert phase.settled_layer(right, 0.2, 0.02) == 3
    assert phase.settled_layer(right, 0.0, 0.02) == 5


def test_sweep_layers_keep_both_ends():
    assert phase.sweep_layers(24, 28, 8) == [24, 25, 26, 27, 28]
    assert phase.sweep_layers(30, 30, 8) == [30]
    thinned = phase.sweep_layers(3, 30, 4)
    assert thinned == [3, 12, 21, 30]
