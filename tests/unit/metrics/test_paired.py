"""Paired means against scipy, shares against what they were made of, and how often both cover."""

import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import ttest_1samp

from layercal.metrics import paired


def test_losses_against_loops(rng):
    logits, answer = rng.normal(size=(3, 7, 4)), rng.integers(0, 4, 7)
    logits[:, 2, 3], answer[2] = -np.inf, 1  # a question of three options
    found = paired.losses(logits, answer)
    p = softmax(logits, -1)
    for index in np.ndindex(3, 7):
        right = np.eye(4)[answer[index[1]]]
        assert found["nll"][index] == pytest.approx(-np.log(p[index][answer[index[1]]]))
        assert found["brier"][index] == pytest.approx(((p[index] - right) ** 2).sum())


def test_a_mean_change_is_students_test(rng):
    difference = rng.normal(0.1, 1, 40)
    found, expected = paired.mean_change(difference, np.arange(40)), ttest_1samp(difference, 0)
    assert (found.value, found.p) == pytest.approx((difference.mean(), expected.pvalue))
    for level in (0.9, 0.998):
        assert found.interval(level) == pytest.approx(tuple(expected.confidence_interval(level)))


def test_rows_that_belong_together_count_once(rng):
    difference, cluster = rng.normal(size=30), np.arange(30)
    once = paired.mean_change(difference, cluster)
    thrice = paired.mean_change(np.tile(difference, 3), np.tile(cluster, 3))
    assert thrice.error == pytest.approx(once.error)
    assert thrice.freedom == once.freedom == 29
    with pytest.raises(ValueError, match="two clusters"):
        paired.mean_change(difference, np.zeros(30))


def test_interval_and_p_value_are_inverses_of_each_other(rng):
    for _ in range(50):
        found = paired.mean_change(rng.normal(0.2, 1, 25), np.arange(25))
        low, high = found.interval(1 - found.p)
        assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)


def test_no_change_has_no_error():
    none = paired.mean_change(np.zeros(9), np.arange(9))
    assert none.p == 1 and none.interval() == (0, 0)
    assert paired.mean_change(np.ones(9), np.arange(9)).p == 0


def test_a_share_has_an_interval_that_covers():
    """Gains of which 30 % are left, with noise of their own; the interval misses in about 5 %."""
    missed = 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        whole = rng.exponential(1.0, 120)
        part = 0.3 * whole + rng.normal(0, 0.5, 120)
        value, low, high = paired.share(part, whole, np.arange(120))
        assert low < value < high
        missed += not low <= 0.3 <= high
    assert 8 <= missed <= 34  # 20, give or take three standard errors


def test_a_share_of_a_gain_that_may_be_none_has_no_ends(rng):
    noise = rng.normal(size=50)
    noise -= noise.mean() - 0.01
    assert paired.share(noise, noise, np.arange(50))[1:] == (-np.inf, np.inf)
    assert np.isnan(paired.share(noise, np.zeros(50), np.arange(50))[0])
