"""What claims say where the truth is known, and how often they say it where nothing is there."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sweeps import STILL, sweep

from layercal.metrics import paired
from layercal.metrics.phase import Phase
from layercal.metrics.readings import Group
from layercal.steering import claims, verdicts

HELPS = [1.5, 1, 0.7, 1 / 3]
FALLS = {"trend": 0.1, "trend_low": 0.05, "trend_high": 0.15, "trend_p": 0.001, "order_p": 0.01}
PHASE = Phase(
    decision_layer=1,
    peak_layer=1,
    final_layer=6,
    n=90,
    accuracy_final=0.6,
    accuracy_final_low=0.5,
    accuracy_final_high=0.7,
    chance=0.25,
    chance_p=0.001,
    top_letter=0.3,
    ece_peak=0.3,
    ece_final=0.1,
    correction=0.2,
    ci_low=0.1,
    ci_high=0.3,
    p=0.001,
    settled_layer=1,
    margin=0.1,
    **FALLS,
    rises=False,
    resampled_share=1.0,
    decision_layer_low=1,
    decision_layer_high=1,
)
SHARES = {
    f"{score}_share{end}": value
    for score in ("nll", "ece")
    for end, value in (("", 0.5), ("_low", 0.4), ("_high", 0.6))
}
DIMENSIONS = pd.DataFrame(
    {"layer": 1, "rank": 8, "n": 90, "source": source, **SHARES}
    for source in ("own", "mean", "another's")
)
LOWERS, CONTROLS, KEPT, FROZEN, BEYOND_T = (
    "lowers-nll",
    "beyond-controls",
    "accuracy-kept",
    "norm-frozen",
    "beyond-temperature",
)


ALONE = claims.Family()


def said(made, above_chance=True, phase=PHASE, family=ALONE):
    """Claim -> what is said of it."""
    level = 1 - family.level_of(claims.ACCURACY_KEPT)
    rows = verdicts.summarise({Group(): (made, above_chance)}, accuracy_level=level)
    found = claims.claims(phase, rows, DIMENSIONS, family)
    return {claim["key"]: claim for claim in found}


def outcomes(*given, **settings):
    return {name: claim["outcome"] for name, claim in said(*given, **settings).items()}


def test_a_temperature_is_shown_to_be_one(rng):
    """Equivalence, not the absence of a difference, refutes what goes beyond it."""
    found = said(sweep(rng, HELPS, n_controls=99))
    assert {name: claim["outcome"] for name, claim in found.items()} == {
        "phase": "confirmed",
        LOWERS: "confirmed",
        CONTROLS: "refuted",  # though none of the controls does anything: the growth does it all
        KEPT: "confirmed",
        FROZEN: "confirmed",
        BEYOND_T: "refuted",
        "low-dimensional": "see the number",
    }
    assert "within 0.01 nats of none" in found[BEYOND_T]["evidence"]
    assert abs(found[BEYOND_T]["value"]) < 0.01
    lowered = found[LOWERS]
    assert lowered["measure"] == "change of NLL, steered at layer 2" and lowered["n"] == 600
    assert lowered["ci_low"] < lowered["value"] < lowered["ci_high"] < 0
    shift = found["low-dimensional"]
    assert (shift["value"], shift["ci_low"], shift["ci_high"]) == (0.5, 0.4, 0.6)
    assert "the same for every question, brings 50% of NLL (40% to 60%)" in shift["evidence"]


def test_a_gain_through_the_norm_is_refuted_with_it_frozen(rng):
    assert outcomes(sweep(rng, HELPS, frozen=[1, 1, 1, 1]))[FROZEN] == "refuted"


def test_no_gain_is_said_to_be_none_only_where_that_is_shown(rng):
    small = [1.5, 1, 0.999, 0.998]
    assert outcomes(sweep(rng, small, sharpness=1.0))[LOWERS] == "refuted"
    assert outcomes(sweep(rng, HELPS, n=45, sharpness=1.3))[LOWERS] == "undecided"
    harms = said(sweep(rng, [3, 1, 2, 3], sharpness=1.0))[LOWERS]
    assert harms["outcome"] == "undecided" and "no scale helps" in harms["evidence"]


def test_controls_as_good_refute_and_too_few_of_them_decide_nothing(rng):
    as_good = sweep(rng, HELPS, n_controls=99, control_factors=np.array([HELPS]), growth=STILL)
    assert outcomes(as_good)[CONTROLS] == "refuted"
    few = said(sweep(rng, HELPS, n_controls=19, growth=STILL))[CONTROLS]
    assert few["outcome"] == "undecided" and "set directions: random to 39" in few["evidence"]
    family = claims.Family(branches=4)
    few = said(sweep(rng, HELPS, n_controls=99, growth=STILL), family=family)[CONTROLS]
    assert few["outcome"] == "undecided" and "random to 159" in few["evidence"]
    many = sweep(rng, HELPS, n_controls=159, growth=STILL)
    assert outcomes(many, family=family)[CONTROLS] == "confirmed"


def test_nothing_is_claimed_at_chance(rng):
    at_chance = replace(PHASE, chance_p=0.2)
    found = outcomes(sweep(rng, HELPS), above_chance=False, phase=at_chance)
    assert set(found.values()) == {"not applicable"}


def test_a_phase_is_refuted_only_where_the_opposite_is_shown(rng):
    made = sweep(rng, HELPS)
    assert outcomes(made, phase=replace(PHASE, trend_p=0.2))["phase"] == "undecided"
    assert outcomes(made, phase=replace(PHASE, settled_layer=4))["phase"] == "undecided"
    assert outcomes(made, phase=replace(PHASE, rises=True))["phase"] == "refuted"


def row(**changed):
    """A verdict on the primary direction that lowers NLL and decides nothing further."""
    made = {
        f"{name}_{key}": value
        for name in ("nll", "frozen_nll", "beyond_temperature_nll", "beyond_growth_nll", "accuracy")
        for key, value in (("change", -0.02), ("change_low", -0.09), ("change_high", 0.05))
    }
    errors = {"nll": 0.001, "frozen_nll": 0.03, "beyond_temperature_nll": 0.03}
    errors |= {"beyond_growth_nll": 0.001}
    made |= {f"{name}_change_error": error for name, error in errors.items()}
    made |= {"controls_nll_change": -0.01}
    made |= {f"controls_{score}_p": 0.3 for score in ("nll", "brier", "ece")}
    return {
        **made,
        "direction": "update-mean",
        "kind": "estimator",
        "alphas": [1.0],
        "group": "all",
        "mode": "lens",
        "layer": 1,
        "layer_choice": "fixed",
        "outcome": "lowered",
        "verdict": "as planted.",
        "accuracy_claim_low": -0.03,
        "accuracy_claim_high": 0.01,
        "accuracy_margin": 0.02,
        "nll_margin": 0.01,
        "freedom": 89,
        "controls": 200,
        "n": 90,
        **changed,
    }


def of_rows(*rows):
    return [claim for claim in claims.claims(PHASE, rows, DIMENSIONS, ALONE) if claim["mode"]]


def test_claims_rest_on_one_setting_named_beforehand_and_on_no_control():
    """Not on the layer, the direction or the group that suits them."""
    best = {"nll_change": -5.0, "controls_nll_p": 0.001}
    rows = [
        row(),
        row(layer=2, **best),
        row(direction="update-mean (null-space part)", kind="control", **best),
        row(direction="probe", **best),
        row(group="language:de", **best),
        row(mode="through-network"),
        row(mode="through-network", layer_choice="chosen", nll_change=-0.5),
    ]
    found = of_rows(*rows)
    assert len(found) == 2 * 5
    assert {one["direction"] for one in found} == {"update-mean"}
    assert {one["unit"] for one in found if one["key"] != KEPT} == {"nats"}
    assert found[0]["claim"] == "update-mean, lens: it lowers NLL"
    assert {one["value"] for one in found if one["change"] == "nll"} == {-0.02, -0.5}
    assert {one["measure"].rpartition("steered at ")[2] for one in found} == {
        "layer 1",
        "the layer chosen",
    }


@pytest.mark.parametrize(
    ("p", "change", "error", "outcome"),
    [
        (0.005, -0.03, 0.002, "confirmed"),
        (0.005, -0.03, 0.03, "undecided"),  # all controls alike, other questions might turn it
        (0.005, -0.001, 0.001, "refuted"),
        (0.1, -0.03, 0.002, "undecided"),
        (0.6, -0.03, 0.002, "refuted"),
    ],
)
def test_a_rank_among_controls_is_not_enough(p, change, error, outcome):
    beyond = {"beyond_growth_nll_change": change, "beyond_growth_nll_change_error": error}
    found = of_rows(row(controls_nll_p=p, **beyond))
    assert found[1]["key"] == CONTROLS and found[1]["outcome"] == outcome


def test_what_is_claimed_of_a_fall_needs_the_fall():
    found = of_rows(row(nll_change=-0.001, nll_change_error=0.02))
    assert [one["outcome"] for one in found] == ["undecided"] + ["not applicable"] * 4


@pytest.mark.parametrize(
    ("change", "error", "outcome", "reason"),
    [
        (-0.05, 0.01, "confirmed", "it falls"),
        (-0.05, 0.05, "undecided", "neither shown nor excluded"),
        (0.001, 0.002, "refuted", "within 0.01 nats of none"),
        (-0.006, 0.001, "refuted", "within 0.01 nats of none"),
        (0.05, 0.01, "refuted", "it rises"),
        (0.04, 0.024, "refuted", "falls by no more than 0.01 nats"),
    ],
)
def test_an_interval_that_leaves_no_fall_worth_the_name_refutes(change, error, outcome, reason):
    made = row(nll_change=change, nll_change_error=error)
    found = claims.three_way(made, "nll", 0.05)
    assert found[0] == outcome and reason in found[1]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.01, 0.015, "confirmed"),
        (-0.03, 0.01, "undecided"),
        (-0.08, -0.03, "refuted"),
    ],
)
def test_accuracy_is_kept_by_equivalence(low, high, expected):
    found = of_rows(row(accuracy_claim_low=low, accuracy_claim_high=high))
    assert found[2]["outcome"] == expected and found[2]["key"] == KEPT


def test_the_level_is_split_over_the_study():
    family = claims.Family(branches=6)
    assert family.level_of(LOWERS) == pytest.approx(0.05 / 6)
    split = [family.level_of(name) for name in claims.CLAIMS]
    assert sum(split) == pytest.approx(0.05 / 6) and split[0] == max(split)


def test_what_one_interval_says_is_wrong_in_no_more_than_its_level():
    """Of paired differences with a long tail, as those of NLL have, whose true mean is known."""
    wrong = {"falls or rises": 0, "none at the margin": 0}
    for seed in range(500):
        rng = np.random.default_rng(seed)
        tailed = 0.04 * (rng.exponential(size=281) - 1) * rng.choice([-1, 1], 281, p=[0.3, 0.7])
        for name, shift in (("falls or rises", 0.0), ("none at the margin", -0.01)):
            change = paired.mean_change(tailed + shift, np.arange(281))
            made = {"x_change": change.value, "x_change_error": change.error}
            made |= {"freedom": 280, "nll_margin": 0.01}
            outcome, reason = claims.three_way(made, "x", 0.05)
            told = reason in ("it falls", "it rises") if shift == 0 else outcome == "refuted"
            wrong[name] += told
    assert wrong["falls or rises"] <= 25 + 3 * np.sqrt(500 * 0.05 * 0.95)
    assert wrong["none at the margin"] <= 12.5 + 3 * np.sqrt(500 * 0.025 * 0.975)


def test_directions_that_do_nothing_in_particular_are_not_credited():
    """Overconfident models, and directions that divide logits by what chance made of them."""
    credited = lowered = 0
    factors = np.array([0.9, 1, 0.7, 0.5])
    for seed in range(40):
        rng = np.random.default_rng(seed)
        drawn = 1 + (factors - 1) * rng.uniform(0.2, 1.2, (40, 1))
        given = {"control_factors": drawn[1:], "growth": STILL}
        made = sweep(rng, drawn[0], n=150, n_controls=39, **given)
        made.draws = 50  # of intervals that no claim rests on
        found = outcomes(made)
        lowered += found[LOWERS] == "confirmed"
        credited += found[CONTROLS] == "confirmed"
    assert lowered >= 30 and credited <= 3  # of 40, at a level of 0.025
