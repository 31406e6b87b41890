"""Comparisons against scipy, statsmodels and naive loops, and which readings are compared."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from chain import Chain, questions
from scipy.special import softmax
from scipy.stats import ttest_1samp
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from layercal.metrics import accuracy, comparisons, differences, phase, registry, resampling
from layercal.results import select

METRICS = ["nll", "brier", "accuracy", "ece", "correction"]
FEW = {"min_group": 2, "n_bins": 10, "draws": 200, "seed": 0}


def reached(**known):
    """A phase of a model above chance, whose peak is one of four layers."""
    values = dict.fromkeys((field.name for field in dataclasses.fields(phase.Phase)), 0.0)
    return phase.Phase(**{**values, "decision_layer": 2, "final_layer": 6, **known})


def reading(rng, model="m", questions="q", sharpness=1.0, n=200, answer=None, **known):
    """Answers are drawn from the readings at sharpness 1, or given."""
    logits = rng.normal(size=(n, 4)) * 1.5
    drawn = (rng.random((n, 1)) > softmax(logits, -1).cumsum(-1)).sum(-1).clip(0, 3)
    asked = pd.DataFrame({"answer": drawn if answer is None else answer, "n_options": 4})
    asked = asked.assign(language="en", cluster=[f"c{row}" for row in range(n)])
    asked.index = pd.Index([f"own/{row}" for row in range(n)], name="question_id")
    return comparisons.Reading(
        model=model,
        questions=questions,
        asked=asked,
        peak=4 * sharpness * logits,
        final=sharpness * logits,
        phase=reached(**known),
    )


@pytest.fixture
def two(rng):
    """Two models on the same questions."""
    one = reading(rng, "one")
    return one, reading(rng, "two", sharpness=2, answer=one.asked["answer"].to_numpy())


def rows(*readings, **settings):
    return comparisons.table(readings, **{**FEW, **settings})


def ece(logits, answer):
    """By a loop over bins."""
    p = softmax(logits, -1)
    confidence, correct = p.max(-1), p.argmax(-1) == answer
    found = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence > low) & (confidence <= low + 0.1 + 1e-12)
        found += abs((correct[inside] - confidence[inside]).sum())
    return found / len(answer)


def test_every_number_against_other_libraries(two):
    found, answer = rows(*two).set_index("metric"), two[0].asked["answer"].to_numpy()
    p = [softmax(side.final, -1) for side in two]
    scores = {
        "nll": [-np.log(side[np.arange(200), answer]) for side in p],
        "brier": [((side - np.eye(4)[answer]) ** 2).sum(-1) for side in p],
    }
    for metric, (a, b) in scores.items():
        row, test = found.loc[metric], ttest_1samp(b - a, 0)
        assert (row["value_a"], row["value_b"]) == pytest.approx((a.mean(), b.mean()))
        assert (row["change"], row["p"]) == pytest.approx(((b - a).mean(), test.pvalue))
        assert (row["ci_low"], row["ci_high"]) == pytest.approx(tuple(test.confidence_interval()))
    right = [side.argmax(-1) == answer for side in p]
    row = found.loc["accuracy"]
    assert row["change"] == pytest.approx(right[1].mean() - right[0].mean())
    test = mcnemar(pd.crosstab(*right), exact=False, correction=False)
    assert row["p"] == pytest.approx(test.pvalue)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx(accuracy.paired_interval(*right))
    row, last = found.loc["ece"], [ece(side.final, answer) for side in two]
    assert (row["value_a"], row["value_b"]) == pytest.approx(tuple(last), abs=1e-6)
    weights = resampling.resample_weights(200, 200, 0)
    samples = [
        registry.ece_sample(side.max(-1), hit.astype(float), weights)
        for side, hit in zip(p, right, strict=True)
    ]
    change = differences.error_difference(*samples[::-1])
    assert (row["change"], row["p"]) == pytest.approx((change.value, change.p), abs=1e-7)
    assert (row["ci_low"], row["ci_high"]) == pytest.approx((change.low, change.high), abs=1e-7)
    row = found.loc["correction"]
    falls = [ece(side.peak, answer) - end for side, end in zip(two, last, strict=True)]
    assert (row["value_a"], row["value_b"]) == pytest.approx(tuple(falls), abs=1e-6)
    assert row["change"] == pytest.approx(falls[1] - falls[0], abs=1e-6)
    assert row["ci_low"] <= row["change"] <= row["ci_high"]
    adjusted = multipletests(found["p"], method="holm")[1]
    np.testing.assert_allclose(found["p_holm"], adjusted)


def test_what_is_compared_shares_its_model_or_its_questions(rng):
    names = list(itertools.product("xy", ["p", "q"]))
    answer = rng.integers(0, 4, 200)
    found = rows(*(reading(rng, *name, answer=answer) for name in names))
    pairs = found[["model_a", "questions_a", "model_b", "questions_b"]].drop_duplicates()
    assert pairs.to_numpy().tolist() == [
        ["x", "p", "x", "q"],
        ["x", "p", "y", "p"],
        ["x", "q", "y", "q"],
        ["y", "p", "y", "q"],
    ]
    assert found["metric"].tolist() == METRICS * 4  # all of one family
    np.testing.assert_allclose(found["p_holm"], multipletests(found["p"], method="holm")[1])


def test_the_order_of_questions_counts_for_nothing_and_the_order_of_models_for_the_sign(two, rng):
    one, other = two
    found = rows(one, other)
    shuffled = other.take(other.asked.index[rng.permutation(200)])
    pd.testing.assert_frame_equal(rows(one, shuffled), found)
    turned = rows(other, one)
    np.testing.assert_allclose(turned["change"], -found["change"])
    means = found["metric"].isin(["nll", "brier", "accuracy"])
    np.testing.assert_allclose(turned["ci_low"][means], -found["ci_high"][means])
    np.testing.assert_allclose(turned["p"][means], found["p"][means])
    assert set(turned["outcome"] + found["outcome"]) <= {
        "undecidedundecided",
        "lowerhigher",
        "higherlower",
    }


def test_a_clear_difference_is_named_and_none_is_not(rng):
    calibrated = reading(rng, "calibrated", n=1000)
    answer = calibrated.asked["answer"].to_numpy()
    sharp = dataclasses.replace(calibrated, model="sharp", final=3 * calibrated.final)
    found = rows(calibrated, sharp).set_index("metric")
    assert found["outcome"].to_dict() == {
        "nll": "higher",
        "brier": "higher",
        "accuracy": "undecided",
        "ece": "higher",
        "correction": "lower",
    }
    assert (found["p_holm"] >= found["p"]).all() and found.loc["accuracy", "p"] == 1
    twin = rows(calibrated, dataclasses.replace(calibrated, model="twin"))
    assert (twin["change"] == 0).all() and (twin["p"] == 1).all()
    assert (twin["outcome"] == "undecided").all() and len(answer) == twin["n"].iloc[0]


def test_sets_that_share_some_questions_are_compared_on_these(two):
    one, other = two
    other = dataclasses.replace(other, model="one", questions="more")
    names = other.asked.index[50:]
    found, alone = rows(one, other.take(names)), rows(one.take(names), other.take(names))
    assert (found["n"] == 150).all()
    pd.testing.assert_frame_equal(found, alone)
    assert len(rows(one, other.take(names[:9]), min_group=9)) == 5
    assert rows(one, other.take(names[:9]), min_group=10).empty


@pytest.mark.parametrize(
    ("column", "value"), list(zip(comparisons.IDENTITY, ["th", 9, 5], strict=True))
)
def test_names_of_different_questions_are_no_questions_in_common(two, column, value):
    """Two files of one name number their rows alike."""
    one, other = two
    other = dataclasses.replace(other, model="one", questions="other", asked=other.asked.copy())
    assert len(rows(one, other))
    other.asked.iloc[3, other.asked.columns.get_loc(column)] = value
    assert rows(one, other).empty


def test_nothing_to_compare_is_a_table_all_the_same(two):
    found = rows(two[0])
    assert found.empty and found.columns.tolist() == comparisons.COLUMNS


def test_clusters_hold_what_belongs_together_in_either_set(rng):
    a, b = (pd.DataFrame({"cluster": rng.integers(0, 25, 30).astype(str)}) for _ in range(2))
    found = comparisons.clusters(a, b)
    label = list(range(30))
    for _ in range(30):
        for i, j in itertools.combinations(range(30), 2):
            if a["cluster"][i] == a["cluster"][j] or b["cluster"][i] == b["cluster"][j]:
                label[i] = label[j] = min(label[i], label[j])
    same = np.equal.outer(label, label)
    np.testing.assert_array_equal(np.equal.outer(found, found), same)
    assert len(set(label)) < 20 and set(found) == set(range(len(set(label))))


def test_copies_of_a_question_count_once(two):
    def thrice(side):
        asked = pd.concat([side.asked] * 3)
        asked.index = [f"{name}/{row}" for row, name in enumerate(asked.index)]
        logits = {"peak": np.tile(side.peak, (3, 1)), "final": np.tile(side.final, (3, 1))}
        return dataclasses.replace(side, asked=asked, **logits)

    once, copied = rows(*two), rows(*map(thrice, two))
    assert (copied["n"] == 600).all()
    for metric, tolerance in (("nll", 1e-9), ("brier", 1e-9), ("accuracy", 0.02), ("ece", 0.02)):
        ends = [
            found.set_index("metric").loc[metric, ["ci_low", "ci_high"]] for found in (once, copied)
        ]
        np.testing.assert_allclose(*(end.astype(float) for end in ends), atol=tolerance)


def test_at_chance_there_is_no_correction_to_compare(rng, two):
    guesses = reading(rng, "guesses", answer=two[0].asked["answer"].to_numpy(), chance_p=0.4)
    row = rows(two[0], guesses).set_index("metric").loc["correction"]
    assert row["reason"] == "nothing to correct at chance: guesses on q"
    assert row["outcome"] == "not applicable" and np.isnan(row["p_holm"])


def test_a_peak_at_the_last_layer_is_no_fall(two):
    one, other = two
    none = dataclasses.replace(other, peak=other.final)
    row = rows(one, none).set_index("metric").loc["correction"]
    assert row["value_b"] == 0 and row["change"] == pytest.approx(-row["value_a"])
    assert row["ci_low"] <= row["change"] <= row["ci_high"]


@pytest.fixture(scope="module")
def orders(tmp_path_factory):
    """One model on one set as it is, and on half of it in all orders of the options."""
    made = []
    rows = questions("ABCD" * 6)
    for name, order, count in (("own", "as-is", 24), ("turned", "cyclic", 12)):
        chain = Chain(tmp_path_factory.mktemp(name))
        chain.fetch(rows[:count])
        chain.prompts(option_order=order)
        chain.extract()
        chain.lens()
        chain.metrics()
        made.append(chain)
    return made


def test_option_orders_are_compared_option_by_option(orders):
    own, turned = orders
    own.comparisons(
        of_models=["m", "m"],
        of_questions=["own", "turned"],
        **{
            given: [chain.path(name) for chain in orders]
            for given, name in (
                ("prompts", "prompts.parquet"),
                ("options", "options.parquet"),
                ("phases", "phase.json"),
            )
        },
    )
    found = pd.read_parquet(own.path("comparisons.parquet")).set_index("metric")
    assert (found["n"] == 12).all() and list(found.index) == METRICS
    metrics = pd.read_parquet(turned.path("metrics.parquet"))
    last = select(metrics, METRICS[:4])
    last = last[last["layer"].eq(last["layer"].max())].set_index("metric")["value"]
    for metric in METRICS[:4]:
        assert found.loc[metric, "value_b"] == pytest.approx(last[metric], abs=1e-6)
    options = pd.read_parquet(own.path("options.parquet"))
    options = options[options["layer"].eq(options["layer"].max())].head(12)
    logits = options[[f"logit_{letter}" for letter in "ABCD"]].to_numpy()
    assert found.loc["ece", "value_a"] == pytest.approx(ece(logits, options["answer"]), abs=1e-6)
