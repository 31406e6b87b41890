"""Differences of binned errors: signs, readings that hardly differ, p-values and intervals."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from layercal.metrics import calibration, differences, registry, resampling


def sample(rng, n):
    confidence = rng.uniform(0.25, 1, n)
    return confidence, (rng.random(n) < confidence**2).astype(float)


def read(logits, answer, weights, n_bins=10):
    pair = softmax(logits, -1).max(-1), (logits.argmax(-1) == answer).astype(float)
    return registry.ece_sample(*pair, weights, n_bins)


def test_a_reading_does_not_differ_from_itself(rng):
    weights = resampling.resample_weights(285, 300, 0)
    for count in (registry.ece_sample, registry.mce_sample):
        made = count(*sample(rng, 285), weights)
        found = differences.error_difference(made, made)
        assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_difference_is_found_and_signed(rng):
    confidence = rng.uniform(0.25, 1, 1000)
    correct = (rng.random(1000) < confidence).astype(float)
    weights = resampling.resample_weights(1000, 500, 0)
    calibrated = registry.ece_sample(confidence, correct, weights)
    sure = registry.ece_sample(np.minimum(confidence + 0.2, 1), correct, weights)
    found = differences.error_difference(sure, calibrated)
    assert found.p < 0.001 and 0 < found.low < found.value < found.high
    swapped = differences.error_difference(calibrated, sure)
    assert swapped.value == -found.value
    assert (swapped.low, swapped.high) == pytest.approx((-found.high, -found.low), abs=0.003)
    assert swapped.p < 0.001


def test_a_pick_costs_certainty(rng):
    weights = resampling.resample_weights(400, 500, 0)
    a, b = (registry.ece_sample(*sample(rng, 400), weights) for _ in range(2))
    alone, picked = (differences.error_difference(a, b, count) for count in (1, 5))
    assert picked.low < alone.low and picked.high > alone.high
    assert picked.p == pytest.approx(min(1, 5 * alone.p))


@pytest.mark.parametrize("n", [281, 1500])
@pytest.mark.parametrize("scale", [1, 3])  # calibrated, and overconfident beyond doubt
@pytest.mark.parametrize("factor", [1.0001, 0.9999, 1 + 2e-8, 1 - 2e-8])
def test_what_hardly_differs_is_not_told_apart(n, scale, factor):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        logits = rng.normal(size=(n, 4)) * 1.5
        answer = (rng.random((n, 1)) > softmax(logits, -1).cumsum(-1)).sum(-1).clip(0, 3)
        weights = resampling.resample_weights(n, 300, seed)
        a, b = (read(logits * by, answer, weights) for by in (scale * factor, scale))
        found = differences.error_difference(a, b)
        moved = [softmax(scale * by * logits, -1).max(-1) for by in (factor, 1)]
        crossed = calibration.bin_index(moved[0], 10) != calibration.bin_index(moved[1], 10)
        assert found.low <= 0 <= found.high
        if crossed.any():  # one question more in a bin is a difference that can be seen
            assert found.p > 0.1
        else:
            assert found.p == 1
            assert found.high - found.low <= 2.5 * np.abs(moved[0] - moved[1]).max()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(30, 300),
    st.floats(0.3, 3),
    st.floats(0.3, 3),
    st.floats(0, 1),
    st.sampled_from([0.8, 0.9, 0.95, 0.99]),
    st.booleans(),
)
def test_p_and_interval_are_inverses(seed, n, first, second, noise, level, worst):
    rng = np.random.default_rng(seed)
    logits, answer = rng.normal(size=(n, 4)), rng.integers(0, 4, n)
    weights = resampling.resample_weights(n, 100, seed)
    made = []
    for scale in (first, second):
        p = softmax(scale * (logits + noise * rng.normal(size=(n, 4))), -1)
        pair = p.max(-1), (p.argmax(-1) == answer).astype(float)
        count = (*pair, weights, 10, 10) if worst else (*pair, weights)
        made.append((registry.mce_sample if worst else registry.ece_sample)(*count))
    if None in made:
        return
    found = differences.error_difference(*made, level=level)
    assert (found.p <= 1 - level) == (not found.low <= 0 <= found.high)
    assert found.low <= found.high and 0 <= found.p <= 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 0.2))
def test_interval_is_within_what_can_differ(seed, noise):
    """Mean |c_a - c_b|, changed answers and what changes its bin, with the noise of these."""
    rng = np.random.default_rng(seed)
    n = 200
    logits, answer = 2 * rng.normal(size=(n, 4)), rng.integers(0, 4, n)
    other = logits + noise * rng.normal(size=(n, 4))
    weights = resampling.resample_weights(n, 200, seed)
    found = differences.error_difference(
        read(logits, answer, weights), read(other, answer, weights)
    )
    (c, y), (d, z) = (
        (softmax(one, -1).max(-1), one.argmax(-1) == answer) for one in (logits, other)
    )
    crosses = calibration.bin_index(c, 10) != calibration.bin_index(d, 10)
    apart = np.where(crosses, np.abs(y - c) + np.abs(z - d), np.abs(c - d) + (y != z))
    farthest = apart.mean() + 2.3 * apart.std() / np.sqrt(n)
    rounding = 1e-12
    assert -farthest - rounding <= found.low and found.high <= farthest + rounding
