"""What verdicts and claims say where the truth is known, and where there is nothing to find."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from test_evaluation import ALPHAS, steered, sweep

from layercal import calibration, dimensions, resampling, verdicts

HELPS = [1.5, 1, 0.7, 1 / 3]
PHASE = {
    "above_chance": True,
    "exists": True,
    "rises": False,
    "peak_layer": 1,
    "final_layer": 2,
    "n": 90,
    "correction": 0.2,
    "ci_low": 0.1,
    "ci_high": 0.3,
    "reason": "as planted",
}
DIMENSIONS = pd.DataFrame(
    [{"layer": 1, "rank": 8, "n": 90, "rank_90": 2, "rank_90_low": 1, "rank_90_high": np.inf}]
)


def test_a_temperature_in_disguise_gains_nothing_beyond_one(rng):
    """The direction only divides logits: all of its gain is there frozen, none beyond T."""
    (found,) = steered(sweep(rng, HELPS))
    assert found["share_frozen"] == pytest.approx(1)
    assert found["share_beyond_temperature"] == pytest.approx(0, abs=0.1)
    assert found["share_beyond_random"] == pytest.approx(1)
    assert found["beyond_temperature_change_low"] <= 0 <= found["beyond_temperature_change_high"]


def test_a_gain_through_the_norm_is_gone_with_it_frozen(rng):
    (found,) = steered(sweep(rng, HELPS, frozen=[1, 1, 1, 1]))
    assert found["outcome"] == "lowered"
    assert found["share_frozen"] == pytest.approx(0, abs=1e-9)
    assert found["frozen_change"] == pytest.approx(0, abs=1e-9)


def test_random_directions_are_beaten_at_all_layers_or_not_at_all():
    """Of many layers, one would beat those of its own by chance; one at its floor is left out."""
    bests = [-0.1, -0.5, -0.9]
    rows = [
        {"random_relative_change_best": best, "ece_before": 0.3, "ece_null_high": floor}
        for best, floor in zip(bests, [0.1, 0.1, 0.4], strict=True)
    ]
    verdicts._set_bar(rows)
    assert [row["random_relative_change_bar"] for row in rows] == [-0.5, -0.5, -0.9]


def test_shares_of_no_gain_are_not_given(rng):
    (found,) = steered(sweep(rng, [1, 1, 1, 1]))
    assert found["share_frozen"] is None and found["share_beyond_random"] is None


def test_shares_of_a_gain_that_may_be_chance_are_not_given(rng):
    (found,) = steered(sweep(rng, [1, 0.9, 0.8, 0.7], n=400, sharpness=1.3))
    assert found["ece_change"] < 0 and found["ece_p_holm"] > 0.05
    assert found["share_frozen"] is None and found["share_beyond_random"] is None
    assert "of the gain" not in found["verdict"]


def test_baselines_stand_beside(rng):
    made = sweep(rng, HELPS)
    rows = verdicts.summarise(made, ["update-mean"], True)
    by_name = {row["direction"]: row for row in rows}
    assert set(by_name) == {"update-mean", "temperature", "vector scaling", "letter prior"}
    found = by_name["temperature"]
    assert found["kind"] == "baseline" and found["outcome"] == "lowered"
    assert found["ece_before"] == by_name["update-mean"]["ece_before"]
    assert found["ece_after"] < 0.06 and found["accuracy_change"] == 0


def test_nothing_is_claimed_at_chance(rng):
    made = sweep(rng, HELPS)
    rows = verdicts.summarise(made, ["update-mean"], above_chance=False)
    assert {row["outcome"] for row in rows} == {"at chance, nothing is claimed"}
    at_chance = {**PHASE, "above_chance": False, "exists": False}
    claims = verdicts.claims(at_chance, rows, DIMENSIONS)
    assert {claim["outcome"] for claim in claims} == {"not applicable"}


def test_claims(rng):
    rows = verdicts.summarise(sweep(rng, HELPS, frozen=[1, 1, 1, 1]), ["update-mean"], True)
    found = {claim["claim"]: claim["outcome"] for claim in verdicts.claims(PHASE, rows, DIMENSIONS)}
    start = "update-mean, through-network: "
    assert found == {
        "a confidence correction phase exists": "confirmed",
        start + "it lowers ECE, more than random directions do": "confirmed",
        start + "it lowers MCE too": "confirmed",
        start + "it leaves accuracy within the margin": "confirmed",
        start + "its gain is there with the norm's scale frozen": "undecided",
        start + "it adds to what temperature scaling gains": "undecided",
        "the correction is low-dimensional": "see the number",
    }
    numbers = pd.DataFrame(verdicts.claims(PHASE, rows, DIMENSIONS)).set_index("measure")
    assert numbers.loc["fall of ECE, layer 1 to 2", "value"] == 0.2
    change = numbers.loc["change of MCE over bins of at least 30, steered at layer 2"]
    assert change["value"] < 0 and change["ci_low"] < change["ci_high"] < 0 and change["n"] == 600
    kept = numbers.loc["change of accuracy, steered at layer 2", ["ci_low", "ci_high"]]
    assert kept.abs().max() < 0.02
    assert np.isnan(numbers["ci_high"].iloc[-1])  # more dimensions than were tried
    rows = verdicts.summarise(sweep(rng, HELPS, random_factors=HELPS), ["update-mean"], True)
    found = {claim["claim"]: claim["outcome"] for claim in verdicts.claims(PHASE, rows, DIMENSIONS)}
    assert found[start + "it lowers ECE, more than random directions do"] == "refuted"
    rows = verdicts.summarise(sweep(rng, HELPS, sharpness=1.0), ["update-mean"], True)
    found = {claim["claim"]: claim["outcome"] for claim in verdicts.claims(PHASE, rows, DIMENSIONS)}
    assert found[start + "it lowers ECE, more than random directions do"] == "nothing to gain"
    no_phase = {**PHASE, "exists": False, "peak_layer": 2}
    assert verdicts.claims(no_phase, rows, DIMENSIONS)[0]["outcome"] == "undecided"
    rises = {**no_phase, "rises": True}
    assert verdicts.claims(rises, rows, DIMENSIONS)[0]["outcome"] == "refuted"


def test_each_part_of_the_questions_has_its_own_chance(rng):
    """A language in which the model guesses, beside one that it knows."""
    made = sweep(rng, HELPS)
    guessed = np.arange(600) < 200
    made.answer[guessed] = rng.integers(0, 4, 200)
    assert verdicts.above_chance(made)
    assert verdicts.above_chance(made.take(~guessed))
    assert not verdicts.above_chance(made.take(guessed))
    for logits in made.logits.values():  # of two options half are right by chance
        logits[..., 2:] = -np.inf
    made.answer = rng.integers(0, 2, 600)
    assert not verdicts.above_chance(made)


def row(layer, outcome, p, change, **further):
    """A verdict whose further changes are all undecided unless told."""
    tested = {
        f"{name}_{key}": value
        for name in ("ece", "mce_min30", "accuracy", "frozen", "beyond_temperature")
        for key, value in (("change", -0.01), ("change_low", -0.03), ("change_high", 0.01))
    }
    tested |= dict.fromkeys(("mce_min30_p_holm", "frozen_p_holm", "beyond_temperature_p_holm"), 0.3)
    return {
        **tested,
        "direction": "update-mean",
        "mode": "lens",
        "layer": layer,
        "outcome": outcome,
        "ece_p_holm": p,
        "ece_change": change,
        "accuracy_kept": False,
        "accuracy_margin": 0.02,
        "verdict": f"layer {layer}: {outcome}",
        "n": 90,
        **further,
    }


def test_all_claims_rest_on_one_setting_at_which_ece_is_lowered():
    """Not each on the one that suits it, with the words of yet another."""
    rows = [
        row(1, "raised", 1e-9, 0.2),
        row(2, "lowered", 0.01, -0.05),
        row(3, "lowered", 0.02, -0.04, accuracy_kept=True, mce_min30_p_holm=0.01),
        row(4, "lowered", 0.03, -0.04, frozen_p_holm=0.01, beyond_temperature_p_holm=0.01),
    ]
    lowers, *further = verdicts.claims(PHASE, rows, DIMENSIONS)[1:-1]
    assert lowers["outcome"] == "confirmed" and lowers["evidence"] == "layer 2: lowered"
    assert {claim["outcome"] for claim in further} == {"undecided"}
    assert all(claim["evidence"].startswith("Steered at layer 2, ") for claim in further)
    rows[1] |= {"mce_min30_p_holm": 0.04, "accuracy_kept": True}
    mce, accuracy, *_ = verdicts.claims(PHASE, rows, DIMENSIONS)[2:-1]
    assert mce["outcome"] == accuracy["outcome"] == "confirmed"
    assert (
        "MCE over bins of at least 30 changes by -0.010 (95 % CI -0.030 to +0.010, p = 0.04 after "
        "Holm)" in mce["evidence"]
    )
    rows[1] |= {"mce_min30_change": 0.02, "accuracy_kept": False, "accuracy_change_high": -0.03}
    mce, accuracy, *_ = verdicts.claims(PHASE, rows, DIMENSIONS)[2:-1]
    assert mce["outcome"] == accuracy["outcome"] == "refuted"


def test_what_claims_rest_on_is_adjusted_for_all_rows(rng):
    """Each p-value in its own family of equal kind, baselines apart."""
    rows = verdicts.summarise(two_layers(rng, HELPS), ["update-mean"], True)
    for name in ("ece", "mce_min30", "frozen", "beyond_temperature"):
        steered_rows = [one for one in rows if one["kind"] != "baseline"]
        expected = resampling.holm([one[f"{name}_p"] for one in steered_rows])
        np.testing.assert_allclose([one[f"{name}_p_holm"] for one in steered_rows], expected)
    assert not any("frozen_p_holm" in one for one in rows if one["kind"] == "baseline")


def test_directions_that_do_nothing_in_particular_are_not_credited():
    """Overconfident models and directions whose effect on each question is drawn at random."""
    credited = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        made = sweep(rng, [1, 1, 1, 1], n=150, n_random=9)
        for logits in made.logits.values():
            noise = 0.5 * rng.normal(size=logits.shape)
            logits += noise * np.abs(ALPHAS)[:, None]
        (found,) = steered(made)
        credited += found["outcome"] == "lowered"
    assert credited <= 5


def test_kinds():
    assert verdicts.kind("update-mean", ["update-mean"]) == "estimator"
    assert verdicts.kind("update-mean (rotate)", ["update-mean"]) == "control"
    assert verdicts.kind("update-mean from category:STEM", ["update-mean"]) == "transfer"
    assert verdicts.kind("vector scaling", ["update-mean"]) == "baseline"


def two_layers(rng, factors):
    """A sweep whose first layer does nothing, and whose second has the factors."""
    made = sweep(rng, factors)
    for mode, logits in made.logits.items():
        still = np.broadcast_to(logits[:, :, :, [1]], logits.shape)
        made.logits[mode] = np.concatenate([still, logits], 2)
    made.layers = [1, 2]
    return made


def test_the_layer_is_chosen_without_the_scored_questions(rng):
    made = two_layers(rng, HELPS)
    rows = {row["layer"]: row for row in steered(made)}
    assert list(rows) == [1, 2, "selected"]
    assert rows["selected"]["layers"] == [2, 2, 2] and rows["selected"]["alphas"] == [1, 1, 1]
    assert rows["selected"]["ece_after"] == rows[2]["ece_after"] < rows[1]["ece_after"]
    changed = two_layers(np.random.default_rng(0), HELPS)
    for logits in changed.logits.values():
        logits[changed.fold == 1] = rng.normal(size=logits[changed.fold == 1].shape)
    again = {row["layer"]: row for row in steered(changed)}
    assert again["selected"]["layers"][1] == 2 and again["selected"]["alphas"][1] == 1


def test_transfer_takes_its_scale_from_the_source_alone(rng):
    """On one half the direction helps, on the other it harms: what was learnt there is kept."""
    made = sweep(rng, HELPS)
    half = np.arange(600) % 2 == 0
    for logits in made.logits.values():
        logits[~half] = logits[~half][:, :, :, [3, 1, 1, 0]]
    groups = {"helps": half, "harms": ~half}
    rows = verdicts.transfer(made, groups, {"update-mean": "helps"})
    assert [row["scored_on"] for row in rows] == ["helps", "harms"]
    assert rows[0]["ece_change_high"] < 0 and rows[0]["n"] == 300
    assert rows[1]["ece_after"] > rows[0]["ece_after"]
    read = softmax(made.logits["through-network"][half, 0, 0, 3], -1)
    correct = read.argmax(-1) == made.answer[half]
    assert rows[0]["ece_after"] == pytest.approx(calibration.ece(read.max(-1), correct))


def test_dimensions(rng):
    """Logits fall from sharp to calibrated in two steps: the second dimension brings the rest."""
    n = 800
    calibrated = 1.2 * rng.normal(size=(n, 4))
    answer = (rng.random((n, 1)) > softmax(calibrated, -1).cumsum(-1)).sum(-1).clip(0, 3)
    by_rank = np.stack([factor * calibrated for factor in (4.0, 2.0, 1.0, 1.0)], 1)
    weights = resampling.resample_weights(n, 300, 0)
    found = dimensions.table(by_rank[None], answer, weights, [7], [0, 1, 2])
    assert found["rank"].tolist() == [0, 1, 2] and set(found["layer"]) == {7}
    p = softmax(2 * calibrated, -1)
    expected = calibration.ece(p.max(-1), p.argmax(-1) == answer)
    assert found["ece"][1] == pytest.approx(expected)
    assert found["share"].tolist()[::2] == [0, 1]
    assert 0.2 < found["share_low"][1] < found["share"][1] < found["share_high"][1] < 0.9
    assert (found[["rank_90", "rank_90_low", "rank_90_high"]] == 2).all(axis=None)
    still = np.repeat(by_rank[:, :1], 4, 1)
    none = dimensions.table(still[None], answer, weights, [7], [0, 1, 2])
    assert none["share"].isna().all() and np.isinf(none["rank_90"]).all()
    assert "Layer 7: 2 principal direction(s)" in dimensions.in_words(found, 7)
    assert "more than 2 principal direction(s)" in dimensions.in_words(none, 7)


def test_reliability_is_that_of_what_is_scored(rng):
    made = sweep(rng, HELPS)
    (row,) = steered(made)
    found = pd.DataFrame(verdicts.reliability(made, "update-mean", 10))
    for state, expected in ((False, "ece_before"), (True, "ece_after")):
        bins = found[found["steered"] == state]
        gap = (bins["accuracy"] - bins["confidence"]).abs()
        assert (gap * bins["n"]).sum() / bins["n"].sum() == pytest.approx(row[expected])
        assert bins["n"].sum() == row["n"]
        assert (bins["ci_low"] <= bins["accuracy"]).all()
        assert (bins["accuracy"] <= bins["ci_high"]).all()
