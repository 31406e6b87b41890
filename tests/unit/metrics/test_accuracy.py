"""Changes of accuracy against Tango's own definition, and what counts as above chance."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from statsmodels.stats.contingency_tables import mcnemar

from layercal.metrics import accuracy


def pairs(gained, lost, n):
    """Correctness before and after, of so many changes."""
    before, after = np.zeros(n, bool), np.zeros(n, bool)
    after[:gained], before[gained : gained + lost] = True, True
    return before, after


@pytest.mark.parametrize(
    ("gained", "lost", "n", "low", "high"),
    [
        # Bentur et al. 2009, as given for Tango's interval by Fagerland, Lydersen & Laake 2014
        (1, 7, 21, -0.517, -0.026),
        # nothing changes: z^2 / (n + z^2)
        (0, 0, 281, -3.8415 / 284.8415, 3.8415 / 284.8415),
    ],
)
def test_tango_as_published(gained, lost, n, low, high):
    found = accuracy.paired_interval(*pairs(gained, lost, n))
    assert found == pytest.approx((low, high), abs=6e-4)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(5, 300))
def test_p_of_no_change_is_mcnemars_and_the_inverse_of_the_interval(gained, lost, same):
    changed = pairs(gained, lost, gained + lost + same)
    p = accuracy.paired_p(*changed)
    if gained + lost:
        expected = mcnemar([[same, gained], [lost, 0]], exact=False, correction=False).pvalue
        assert p == pytest.approx(expected)
    else:
        assert p == 1
    low, high = accuracy.paired_interval(*changed, level=1 - p) if 1e-9 < p < 1 else (0, 0)
    assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)
    copied = [np.repeat(side, 3) for side in changed]
    cluster = np.repeat(np.arange(gained + lost + same), 3)
    assert accuracy.paired_p(*copied, cluster) >= p - 1e-9


def score(difference, gained, lost, n):
    """Tango's score with the nuisance found by maximising the likelihood numerically."""

    def surprise(losing):
        gaining = losing + difference
        same = 1 - losing - gaining
        return -(
            gained * np.log(gaining) + lost * np.log(losing) + (n - gained - lost) * np.log(same)
        )

    low, high = max(0, -difference) + 1e-12, (1 - difference) / 2 - 1e-12
    losing = minimize_scalar(
        surprise, bounds=(low, high), method="bounded", options={"xatol": 1e-13}
    ).x
    variance = (2 * losing + difference - difference**2) / n
    return ((gained - lost) / n - difference) / np.sqrt(variance)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(5, 300), st.floats(0.8, 0.999))
def test_tango_inverts_the_score_test(gained, lost, same, level):
    n = gained + lost + same
    low, high = accuracy.paired_interval(*pairs(gained, lost, n), level=level)
    z = norm.ppf((1 + level) / 2)
    assert score(low, gained, lost, n) == pytest.approx(z, rel=2e-3)
    assert score(high, gained, lost, n) == pytest.approx(-z, rel=2e-3)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(2, 7))
def test_copies_of_a_question_say_nothing_more(gained, lost, copies):
    once = pairs(gained, lost, 100)
    many = [np.repeat(one, copies) for one in once]
    found = accuracy.paired_interval(*many, cluster=np.repeat(np.arange(100), copies))
    assert found == pytest.approx(accuracy.paired_interval(*once), abs=1e-9)
    alone = accuracy.paired_interval(*once, cluster=np.arange(100))
    assert alone == pytest.approx(accuracy.paired_interval(*once), abs=1e-9)


@pytest.mark.parametrize("gained, lost", [(5, 0), (0, 5), (5, 5), (0, 0)])
def test_swapped_readings_mirror_the_interval(gained, lost):
    before, after = pairs(gained, lost, 5 + 5)
    low, high = accuracy.paired_interval(before, after)
    assert accuracy.paired_interval(after, before) == pytest.approx((-high, -low))
    assert -1 <= low <= (gained - lost) / 10 <= high <= 1


def test_a_loss_at_the_margin_is_seldom_called_kept(rng):
    """Before, with the bootstrap: 7.9 % at n = 281; nominal 2.5."""
    for n in (281, 1500):
        kept = 0
        for _ in range(2000):
            kind = rng.choice(3, n, p=[0.02, 0.04, 0.94])  # gained, lost, neither
            low, _ = accuracy.paired_interval(kind == 1, kind == 0)
            kept += low >= -0.02
        assert kept / 2000 <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / 2000)


def test_clustered_interval_covers(rng):
    """Seven translations of a question, of which most change together."""
    hits = 0
    for _ in range(1000):
        whole = rng.choice(3, (150, 1), p=[0.03, 0.03, 0.94])
        kind = np.where(
            rng.random((150, 7)) < 0.8, whole, rng.choice(3, (150, 7), p=[0.03, 0.03, 0.94])
        )
        cluster = np.repeat(np.arange(150), 7)
        low, high = accuracy.paired_interval(kind.ravel() == 1, kind.ravel() == 0, cluster)
        hits += low <= 0 <= high
    assert 0.93 <= hits / 1000 <= 0.985


def test_chance_is_that_of_all_permutations(rng):
    predicted, answer = rng.integers(0, 3, 6), rng.integers(0, 3, 6)
    hits = [(predicted == answer[list(order)]).sum() for order in itertools.permutations(range(6))]
    found = accuracy.above_chance(predicted, answer, draws=4000)
    assert found.chance == pytest.approx(np.mean(hits) / 6)
    share = np.mean(np.array(hits) >= (predicted == answer).sum())
    assert found.p == pytest.approx(share, abs=0.03)


def test_naming_the_commonest_letter_is_never_above_chance(rng):
    answer = rng.choice(4, 5000, p=[0.2, 0.2, 0.2, 0.4])
    found = accuracy.above_chance(np.full(5000, 3), answer, draws=200)
    assert (found.accuracy, found.p, found.above, found.top_letter) == (found.chance, 1, False, 1)
    mostly = np.where(rng.random(5000) < 0.95, 3, rng.integers(0, 4, 5000))
    assert np.mean(mostly == answer) > 0.35
    assert not accuracy.above_chance(mostly, answer, draws=200).p < 0.01


def test_knowing_is_above_chance_and_permuted_answers_are_not(rng):
    answer = rng.integers(0, 4, 281)
    predicted = np.where(rng.random(281) < 0.4, answer, rng.integers(0, 4, 281))
    assert accuracy.above_chance(predicted, answer).above
    wrongly = [
        accuracy.above_chance(
            predicted, accuracy.permuted_answers(answer, seed=seed), draws=300, seed=seed
        ).above
        for seed in range(300)
    ]
    assert np.mean(wrongly) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)


def test_options_and_clusters_keep_their_answers(rng):
    """A question of two options is never answered C, and translations stay together."""
    n_options = np.repeat(rng.choice([2, 4], 60), 3)
    cluster = rng.permutation(60)[np.repeat(np.arange(60), 3)]
    answer = np.repeat(rng.integers(0, 2, 60) * n_options[::3] // 2, 3)
    dealt = accuracy.permuted_answers(answer, n_options, cluster, seed=1)
    assert (dealt < n_options).all() and not np.array_equal(dealt, answer)
    assert (dealt.reshape(60, 3) == dealt[::3, None]).all()
    assert sorted(dealt) == sorted(answer)


def test_copies_do_not_make_a_guesser_know(rng):
    """Seven copies of each guess: permuted one by one, p <= .05 would come out ever so often."""
    found = []
    for seed in range(200):
        answer, predicted = (np.repeat(rng.integers(0, 4, 100), 7) for _ in range(2))
        cluster = np.repeat(np.arange(100), 7)
        found.append(accuracy.above_chance(predicted, answer, None, cluster, 200, seed).above)
    assert np.mean(found) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
