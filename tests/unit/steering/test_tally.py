"""Sums over controls against the sweep's own rule, question by question; ranks that are uniform."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from scipy.stats import kstest
from sweeps import ALPHAS, sweep, tallied

from layercal import InputError
from layercal.metrics import calibration
from layercal.steering import evaluation, tally


def one_row_at_a_time(logits, answer, fold, source):
    """Changes of one control, (n, layers, alphas, k), by the functions a fitted direction has."""
    settings = np.moveaxis(logits, 0, 2).reshape(-1, *logits.shape[::3])
    nll = -np.log(softmax(settings, -1)[:, np.arange(len(answer)), answer])
    correct = settings.argmax(-1) == answer
    alphas = ALPHAS * logits.shape[1]
    scored, first = np.empty((len(answer), logits.shape[-1])), alphas.index(0)
    for f in np.unique(fold):
        others = (fold != f) & source
        chosen = evaluation.select_scale(nll[:, others], correct[:, others], alphas, 0.02)
        scored[fold == f] = settings[chosen, fold == f]

    def means(read):
        p = softmax(read, -1)
        right = p.argmax(-1) == answer
        of_answer = p[np.arange(len(answer)), answer]
        brier = ((p - np.eye(read.shape[-1])[answer]) ** 2).sum(-1)
        ece = calibration.ece(p.max(-1), right)
        return -np.log(of_answer).mean(), brier.mean(), right.mean(), float(ece)

    return np.subtract(means(scored), means(settings[first]))


@pytest.fixture
def controls(rng):
    n, fold = 120, np.arange(120) % 3
    answer, part = rng.integers(0, 4, n), np.arange(n) >= 60
    logits = 2 * rng.normal(size=(n, 1, 1, 1, 4)) * np.ones((1, 6, 2, 1, 1))
    logits = logits + rng.normal(size=(n, 6, 2, 4, 4)) * np.abs(ALPHAS)[:, None]
    logits[np.arange(n), ..., answer] += 0.6
    return logits, answer, fold, part


@pytest.mark.parametrize("places", [[0], [1], [0, 1]])
def test_sums_choose_and_score_as_question_by_question(controls, places):
    logits, answer, fold, part = controls
    found = tallied(logits, answer, fold, part).changes("lens", places)
    for r in range(6):
        everyone = np.ones(120, bool)
        expected = one_row_at_a_time(logits[:, r, places], answer, fold, everyone)
        got = [found[name][r] for name in ("nll", "brier", "accuracy", "ece")]
        np.testing.assert_allclose(got, expected, atol=1e-9)


def test_scales_may_be_learnt_elsewhere(controls):
    logits, answer, fold, part = controls
    made = tallied(logits, answer, fold, part)
    source, target = made.take(part), made.take(~part)
    found = target.changes("lens", [0], source)
    for r in range(6):
        chosen_on = logits[:, r, [0]], answer, fold, part
        settings = np.moveaxis(chosen_on[0], 0, 2).reshape(4, 120, 4)
        nll = -np.log(softmax(settings, -1)[:, np.arange(120), answer])
        correct, change = settings.argmax(-1) == answer, np.zeros(120)
        for f in range(3):
            learnt = (fold != f) & part
            best = evaluation.select_scale(nll[:, learnt], correct[:, learnt], ALPHAS, 0.02)
            change[fold == f] = (nll[best] - nll[1])[fold == f]
        assert found["nll"][r] == pytest.approx(change[~part].mean())


def test_parts_of_a_cell_cannot_be_told(controls):
    logits, answer, fold, part = controls
    with pytest.raises(ValueError, match="share one with others"):
        tallied(logits, answer, fold).take(part)


def test_cells_are_fold_category_and_language():
    prompts = pd.DataFrame({"category": list("aabb"), "language": ["de", "en", "en", "en"]})
    found = tally.cells(prompts, np.array([0, 0, 0, 1]))
    assert len(set(found)) == 4
    assert len(set(tally.cells(prompts.assign(language="en"), np.zeros(4, int)))) == 2


def test_a_rank_counts_the_direction_in():
    assert tally.rank_p(-1.0, np.zeros(199)) == 1 / 200
    assert tally.rank_p(-1e-9, np.zeros(199)) == 1
    assert tally.rank_p(-0.5, np.array([-1, -0.6, -0.4])) == 3 / 4


def test_what_lowers_nothing_does_not_rank_before_harm():
    assert tally.rank_p(0.0, np.full(199, 0.3)) == tally.rank_p(0.1, np.full(199, 0.3)) == 1


def test_ranks_are_uniform_where_the_direction_is_one_of_the_controls():
    """Each of the R + 1 in its turn: p <= level in no more than that share."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(-5, 1, (400, 60))
    found = np.array([tally.rank_p(one[0], one[1:]) for one in drawn])
    for level in (0.05, 0.25, 0.5):
        assert (found <= level).mean() <= level + 3 * np.sqrt(level * (1 - level) / 400)
    assert kstest(found, "uniform").pvalue > 0.01


def test_a_control_of_the_sweep_is_the_first_of_the_tally(rng):
    made = sweep(rng, [1, 1, 1, 1], control_factors=rng.uniform(0.3, 1.2, (4, 4)))
    held = made.under_control("through-network")[0, 2]
    nll = -np.log(softmax(held, -1)[np.arange(600), made.answer]).mean()
    of_all = made.controls.at_each_scale("through-network")["nll"]
    assert of_all[0, 0, 2] == pytest.approx(nll)


def test_sums_are_the_same_in_whatever_order(rng):
    scores = rng.normal(size=(500, 3, 13)) * 10
    units = tally.in_units(scores)
    np.testing.assert_allclose(units.sum(0) * tally.UNIT, scores.sum(0), atol=500 * tally.UNIT)
    shuffled = rng.permutation(500)
    parts = np.split(units[shuffled], [100, 101, 377])
    again = sum(part.sum(0) for part in parts)
    np.testing.assert_array_equal(again * tally.UNIT, units.sum(0) * tally.UNIT)


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_score_that_is_no_number_is_refused(broken):
    with pytest.raises(InputError, match="steered by a control is no number"):
        tally.in_units(np.array([0.0, broken]))


def naive_choice(loss, accuracy, alphas, margin):
    """The rule, setting by setting."""
    none = list(alphas).index(0)
    allowed = accuracy >= accuracy[none] - margin - 1e-12
    order = sorted(range(len(alphas)), key=lambda index: abs(alphas[index]))
    return min((index for index in order if allowed[index]), key=lambda index: loss[index])


@pytest.mark.parametrize("places", [1, 3])
def test_the_choice_is_that_of_a_naive_loop(rng, places):
    alphas = np.tile([-1.0, 0.0, 0.5, 1.0], places)
    loss = rng.integers(0, 4, (300, len(alphas))) / 3  # with many equals
    accuracy = rng.integers(0, 5, loss.shape) / 100 + 0.5
    chosen = tally.choose(loss, accuracy, alphas, 0.02)
    expected = [naive_choice(*row, alphas, 0.02) for row in zip(loss, accuracy, strict=True)]
    assert chosen.tolist() == expected and len(set(expected)) > 3


def test_a_loss_that_is_no_number_is_not_chosen():
    loss, accuracy = np.array([3.0, np.nan, 2.0]), np.full(3, 0.5)
    assert tally.choose(loss, accuracy, [0.0, 0.5, 1.0], 0.02) == 2
