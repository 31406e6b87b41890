"""What verdicts say where the truth is known, and where there is nothing to find."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sweeps import PRIMARY, logits_of, steered, sweep

from layercal.metrics import calibration, resampling
from layercal.metrics.readings import Group
from layercal.steering import baselines, verdicts

HELPS = [1.5, 1, 0.7, 1 / 3]


def test_a_temperature_in_disguise_gains_nothing_beyond_one(rng):
    """The direction only divides logits: all of its gain is there frozen, none beyond T."""
    (found,) = steered(sweep(rng, HELPS))
    assert found["share_frozen"] == pytest.approx(1)
    assert found["share_beyond_temperature"] == pytest.approx(0, abs=0.01)
    assert found["share_beyond_temperature_low"] <= 0.01
    assert found["share_beyond_temperature_high"] >= -0.01
    # nor beyond what the growth of the norm, here all of the factor, does alone
    assert found["share_beyond_growth"] == pytest.approx(0, abs=1e-9)


def test_a_gain_through_the_norm_is_gone_with_it_frozen(rng):
    (found,) = steered(sweep(rng, HELPS, frozen=[1, 1, 1, 1]))
    assert found["outcome"] == "lowered, not shown beyond matched controls"  # of which are 4
    assert found["share_frozen"] == pytest.approx(0, abs=1e-9)
    assert found["frozen_nll_change"] == pytest.approx(0, abs=1e-9)


def test_shares_of_no_gain_are_not_given(rng):
    (found,) = steered(sweep(rng, [1, 1, 1, 1]))
    assert found["share_frozen"] is None and found["share_beyond_growth"] is None


def test_shares_of_a_gain_that_may_be_chance_are_not_given(rng):
    (found,) = steered(sweep(rng, [1, 0.98, 0.97, 0.96], n=400, sharpness=1.1))
    assert found["nll_change"] < 0 and found["nll_p_holm"] > 0.05
    assert found["share_frozen"] is None and found["share_beyond_growth"] is None
    assert "of the gain" not in found["verdict"]


def test_baselines_stand_beside(rng):
    made = sweep(rng, HELPS)
    rows = verdicts.summarise({Group(): (made, True)})
    by_name = {row["direction"]: row for row in rows}
    assert set(by_name) == {"update-mean", *baselines.BASELINES, "temperature of equal growth"}
    grown = by_name["temperature of equal growth"]
    assert grown["kind"] == "baseline" and grown["alphas"] == [1, 1, 1]
    assert grown["nll_after"] == pytest.approx(by_name["update-mean"]["nll_after"])
    found = by_name["temperature"]
    assert found["kind"] == "baseline" and found["outcome"] == "lowered"
    assert found["ece_before"] == by_name["update-mean"]["ece_before"]
    assert found["ece_after"] < 0.06 and found["accuracy_change"] == 0


def test_each_part_of_the_questions_has_its_own_chance(rng):
    """A language in which the model guesses, beside one that it knows."""
    guessed = np.arange(600) < 200
    made = sweep(rng, HELPS, part=guessed)
    made.answer[guessed] = rng.integers(0, 4, 200)
    assert verdicts.above_chance(made)
    assert verdicts.above_chance(made.take(~guessed))
    assert not verdicts.above_chance(made.take(guessed))
    for logits in logits_of(made):  # of two options half are right by chance
        logits[..., 2:] = -np.inf
    made.answer = rng.integers(0, 2, 600)
    assert not verdicts.above_chance(made)


def test_p_values_are_adjusted_for_all_rows_groups_and_pairs(rng):
    """Of a kind, over layers, modes and languages (Holm), and over the pairs of the study."""
    made = two_layers(rng, [1.5, 1, 0.99, 0.98], sharpness=1.1, part=np.arange(600) < 300)
    halves = {Group(): made, Group("language", "de"): made.take(np.arange(600) < 300)}
    parts = {name: (one, True) for name, one in halves.items()}
    for pairs in (1, 2):
        rows = verdicts.summarise(parts, pairs=pairs)
        own = [one for one in rows if one["kind"] == "estimator"]
        assert len(own) == 2 * 3
        expected = pairs * resampling.holm([one["nll_p"] for one in own])
        np.testing.assert_allclose([one["nll_p_holm"] for one in own], expected.clip(max=1))


def two_layers(rng, factors, **settings):
    """A sweep whose first layer does nothing, and whose second has the factors."""
    made = sweep(rng, factors, **settings)
    for one in made.steered.values():
        for name in ("fitted", "frozen"):
            logits = getattr(one, name)
            still = np.broadcast_to(logits[:, :, :, :, [1]], logits.shape)
            setattr(one, name, np.concatenate([still, logits], 3))
        one.growth = np.concatenate([np.ones_like(one.growth), one.growth], 2)
    sums = made.controls.sums
    for mode, one in sums.items():
        sums[mode] = np.concatenate([np.broadcast_to(one[:, :, :, [1]], one.shape), one], 1)
    made.layers = [1, 2]
    return made


def test_the_layer_is_chosen_without_the_scored_questions(rng):
    made = two_layers(rng, HELPS)
    rows = {row["layer"]: row for row in steered(made)}
    assert list(rows) == [1, 2, "selected"]
    assert [row["layer_choice"] for row in rows.values()] == ["fixed", "fixed", "chosen"]
    assert rows["selected"]["layers"] == [2, 2, 2] and rows["selected"]["alphas"] == [1, 1, 1]
    assert rows["selected"]["ece_after"] == rows[2]["ece_after"] < rows[1]["ece_after"]
    changed = two_layers(np.random.default_rng(0), HELPS)
    for logits in logits_of(changed):
        logits[changed.fold == 1] = rng.normal(size=logits[changed.fold == 1].shape)
    again = {row["layer"]: row for row in steered(changed)}
    assert again["selected"]["layers"][1] == 2 and again["selected"]["alphas"][1] == 1


def test_transfer_takes_its_scale_from_the_source_alone(rng):
    """On one half the direction helps, on the other it harms: what was learnt there is kept."""
    half = np.arange(600) % 2 == 0
    made = sweep(rng, HELPS, part=half, control_factors=np.array([HELPS]))
    for logits in logits_of(made):
        logits[~half] = logits[~half][:, :, :, :, [3, 1, 1, 0]]
    helps, harms = (Group("category", name) for name in ("helps", "harms"))
    rows = verdicts.transfer(made, {helps: half, harms: ~half}, {PRIMARY: helps})
    assert [row["target"] for row in rows] == ["helps", "harms"]
    assert {(row["source"], row["fitted_on"]) for row in rows} == {("helps", "category:helps")}
    assert rows[0]["nll_change_high"] < 0 and rows[0]["n"] == 300
    assert rows[1]["nll_after"] > rows[0]["nll_after"]
    read = softmax(made.steered["through-network"].fitted[half, 0, 0, 0, 3], -1)
    correct = read.argmax(-1) == made.answer[half]
    assert rows[0]["ece_after"] == pytest.approx(calibration.ece(read.max(-1), correct))
    # the controls help on both halves: the direction is one of them here, and worse there
    assert rows[0]["controls_nll_change"] == pytest.approx(rows[0]["nll_change"])
    assert rows[1]["controls_nll_change"] < rows[1]["nll_change"]
    assert [row["controls_nll_p"] for row in rows] == [1, 1]


def test_reliability_is_that_of_what_is_scored(rng):
    made = sweep(rng, HELPS)
    (row,) = steered(made)
    found = pd.DataFrame(verdicts.reliability(made, 10))
    for state, expected in ((False, "ece_before"), (True, "ece_after")):
        bins = found[found["steered"] == state]
        gap = (bins["accuracy"] - bins["confidence"]).abs()
        assert (gap * bins["n"]).sum() / bins["n"].sum() == pytest.approx(row[expected])
        assert bins["n"].sum() == row["n"]
        assert (bins["ci_low"] <= bins["accuracy"]).all()
        assert (bins["accuracy"] <= bins["ci_high"]).all()
