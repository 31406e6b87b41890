"""A seeded small form of benchmarks/error_rates.py: rates that must not leave their level.

Bounds are the rates that docs/metrics.md states, plus three Monte Carlo errors of so few seeds.
"""

import error_rates
import numpy as np
import pytest


def rates(part, name, n, repeats, monkeypatch):
    monkeypatch.setattr(error_rates, "DRAWS", 300)
    function, *arguments = error_rates.PARTS[part][name]
    found = [function(seed, n, *arguments) for seed in range(repeats)]
    return {key: float(np.mean([one[key] for one in found])) for key in found[0]}


def at_most(rate, repeats):
    return rate + 3 * np.sqrt(rate * (1 - rate) / repeats)


@pytest.mark.parametrize("name", error_rates.PARTS["floor"])
def test_calibrated_models_are_seldom_above_their_floor(name, monkeypatch):
    found = rates("floor", name, 281, 100, monkeypatch)
    assert found["above, as used"] <= at_most(0.07, 100)
    if "clusters" in name:  # the case has teeth: rows taken as independent are called worse
        assert found["above, rows alone"] > at_most(0.07, 100)


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("0, 0", 0.05),
        ("0.10, 0.10", 0.05),
        ("0.06 over, 0.06 under", 0.05),  # 0.32 where only gaps as they came out are tried
    ],
)
def test_equal_errors_are_seldom_told_apart(name, level, monkeypatch):
    found = rates("difference", name, 281, 60, monkeypatch)
    assert found["p <= .05"] <= at_most(level, 60)
    assert found["covers"] >= 1 - at_most(level, 60)


def test_unequal_errors_are_told_apart(monkeypatch):
    assert rates("difference", "0.20, 0.12", 281, 20, monkeypatch)["p <= .05"] >= 0.7
    assert rates("difference", "0.20, 0", 281, 20, monkeypatch)["p <= .05"] >= 0.7


@pytest.mark.parametrize("name", error_rates.PARTS["same"])
def test_what_is_the_same_is_never_told_apart(name, monkeypatch):
    assert rates("same", name, 281, 10, monkeypatch)["p <= .05"] == 0


def test_mce_of_full_bins_covers(monkeypatch):
    for name in ("ECE 0, bins of 30", "ECE 0.1, bins of 30"):
        found = rates("mce", name, 281, 60, monkeypatch)
        assert found["covers"] >= 1 - at_most(0.07, 60)


@pytest.mark.parametrize("name", error_rates.PARTS["accuracy"])
def test_a_loss_at_the_margin_is_seldom_called_kept(name, monkeypatch):
    assert rates("accuracy", name, 281, 300, monkeypatch)["kept, score"] <= at_most(0.03, 300)


def test_only_knowing_is_above_chance(monkeypatch):
    for name in ("the commonest letter", "the commonest letter in .95", "varied letters"):
        found = rates("chance", name, 1500, 60, monkeypatch)
        assert found["above its letters"] <= at_most(0.05, 60), name
    assert rates("chance", "knows .1", 1500, 20, monkeypatch)["above its letters"] > 0.9


@pytest.mark.parametrize(
    "name",
    [
        "constant, 0.10",
        "exchangeable layers",
        "falls, accuracy rises .03 a layer",
        "falls, four layers, the first a quarter of the climb short",
    ],
)
def test_a_phase_is_seldom_found_where_there_is_none(name, monkeypatch):
    assert rates("phase", name, 281, 30, monkeypatch)["exists"] <= at_most(0.05, 30)


def test_a_phase_is_found_where_there_is_one(monkeypatch):
    name = "a phase as measured, .335 to .062"
    assert rates("phase", name, 1500, 10, monkeypatch)["exists"] >= 0.7


@pytest.mark.parametrize("name", error_rates.PARTS["temperature"])
def test_temperatures_are_covered(name, monkeypatch):
    found = rates("temperature", name, 281, 150, monkeypatch)
    assert found["covers"] >= 1 - at_most(0.05, 150)


@pytest.mark.parametrize("name", error_rates.PARTS["steps"])
def test_no_layer_adds_knowledge_where_none_does(name, monkeypatch):
    found = rates("steps", name, 281, 60, monkeypatch)
    assert found["knowledge added"] <= at_most(0.05, 60)
    assert found["scale bettered"] > 0.9  # in either: layers that are less sure


def test_what_is_scale_is_decided_only_where_there_is_an_excess(monkeypatch):
    of = {name: rates("share", name, 281, 60, monkeypatch) for name in error_rates.PARTS["share"]}
    assert all(found["covers 1"] >= 1 - at_most(0.05, 60) for found in of.values())
    calibrated, *_, sharp = of.values()
    assert calibrated["above 0"] <= at_most(0.05, 60) and sharp["above 0"] > 0.95


@pytest.mark.parametrize("name", list(error_rates.PARTS["comparison"])[:2])
def test_models_that_know_as_much_are_seldom_told_apart(name, monkeypatch):
    found = rates("comparison", name, 281, 100, monkeypatch)
    for key, rate in found.items():
        if key.endswith("covers"):
            assert rate >= 1 - at_most(0.05, 100), key
        else:
            assert rate <= at_most(0.05, 100), key


def test_what_models_differ_by_is_covered(monkeypatch):
    found = rates("comparison", "one knows more", 281, 60, monkeypatch)
    for metric in ("nll", "brier", "accuracy", "ece", "correction"):
        assert found[f"{metric}, covers"] >= 1 - at_most(0.05, 60), metric
    assert found["nll, p <= .05"] > 0.7 and found["accuracy, p <= .05"] > 0.7
    assert found["any stands"] > 0.7
