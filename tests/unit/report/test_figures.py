"""Figures: every one is labelled, not blank, and the same file each time."""

import io
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from sweeps import tallied

from layercal import InputError
from layercal.metrics import accuracy, phase, readings, resampling, scoring
from layercal.report import figures, plates
from layercal.stages.draw_figures import latex
from layercal.steering import dimensions, evaluation, verdicts
from layercal.steering.tally import ALL_CONTROLS


@pytest.fixture
def tables(rng):
    read = readings.Readings(
        logits=rng.normal(size=(6, 60, 4)) * np.arange(1, 7)[:, None, None],
        answer=rng.integers(0, 4, 60),
        extra={"option_mass": rng.random((6, 60)), "entropy": rng.random((6, 60))},
    )
    subjects = ["anatomy"] * 30 + ["virology"] * 25 + ["physics"] * 5
    prompts = pd.DataFrame({"subject": subjects, "category": "Other", "language": "en"})
    prompts.loc[prompts["subject"] == "physics", "category"] = "STEM"
    groups = readings.groups(prompts)
    metrics = readings.group_table(read, groups, 20, ([10, 15], [1, 30], 100, 0))
    metrics = metrics.assign(lens="logit", order="as-is")
    weights = resampling.resample_weights(60, 100, 0)
    known = accuracy.above_chance(read.logits[-1].argmax(-1), read.answer)
    found = phase.detect(read.confidence, read.correct, weights, known)
    steered, fold = rng.normal(size=(60, 4, 2, 3, 4)), np.arange(60) % 3
    made = evaluation.Sweep(
        logits=dict.fromkeys(["lens", "lens-frozen"], steered),
        growth={"lens": np.ones((60, 3, 2, 3))},
        controls=tallied(steered, read.answer, fold, np.arange(60) < 30, [-1.0, 0.0, 1.0]),
        answer=read.answer,
        fold=fold,
        cluster=np.arange(60),
        norms=np.ones(6),
        variants=["update-mean"],
        layers=[4, 5],
        alphas=[-1.0, 0.0, 1.0],
        accuracy_margin=0.02,
        n_folds=3,
        n_bins=10,
        draws=100,
        seed=0,
    )
    directions = pd.DataFrame(
        {"layer": np.tile(range(1, 6), 2), "cosine": rng.random(10), "name": "update-mean"}
    )
    halves = {"category:A": np.arange(60) < 30, "category:B": np.arange(60) >= 30}
    rows = [
        {**row, "fitted_on": source}
        for source in halves
        for row in verdicts.transfer(made, halves, {"update-mean": source})
        if row["layer"] == 4
    ]
    logits = np.moveaxis(read.logits[[2, 3, 4, 5]], 0, 1)[None, None].repeat(3, 1)
    settings = np.arange(60), [2], [0, 1, 2], 100, 0
    by_rank = dimensions.table(logits, read.answer, *settings)
    by_rank["explained"] = [0, 0.6, 0.9] * 3
    steered = evaluation.dose_response(made), directions, by_rank, pd.DataFrame(rows)
    shares = pd.DataFrame(
        {"layer": layer, "what": what, "rule": rule, "size": 3, "share": 0.1 * layer, "chance": 0.2}
        for layer in range(1, 6)
        for what in ("residual", "update")
        for rule in ("k=3", "energy=0.9")
    )
    parts = {
        f"{part} {b}": rng.normal(size=(60, 4)) for b in (4, 5) for part in ("attention", "mlp")
    }
    ablated = pd.DataFrame(scoring.ablations(made, read.logits[5], parts))
    return metrics, found, *steered, shares, ablated


def draw(tables):
    metrics, found, sweep, directions, by_rank, transfer, shares, ablated = tables
    return {
        **draw_readings(metrics, found),
        "layer_curves": figures.layer_curves(metrics, found, "a model"),
        "group_curves": figures.group_curves(metrics, "category"),
        "many_groups": figures.group_curves(many_groups(metrics), "language"),
        "dose_response": figures.dose_response(sweep, "lens", ["update-mean"], ALL_CONTROLS),
        "direction_cosines": figures.direction_cosines(directions),
        "dimensions": figures.dimensions(by_rank),
        "transfer_matrix": figures.transfer_matrix(transfer),
        "null_space": figures.null_space(shares),
        "ablations": figures.ablations(ablated),
    }


def draw_readings(metrics, found):
    """What shows one reading, and what shows no reading at all."""
    both = pd.concat([metrics, metrics.assign(lens="tuned")])
    rng = np.random.default_rng(0)
    bins = readings.reliability(rng.random(200), rng.integers(0, 2, 200), 10)
    panels = [bins.assign(reading=name, state="as is") for name in "abcd"]
    panels.append(bins.assign(reading="d", state="steered", accuracy=0.5))
    accuracy = metrics.query("metric == 'accuracy' and group == 'all'")
    curves = [
        accuracy.assign(report=name, depth=accuracy["layer"] / 5, metric=metric)
        for name in "ab"
        for metric in ("accuracy", "ece")
    ]
    reported = [
        {"metric": "accuracy", "depth": 0.7, "depth_to": 0.8, "value": np.nan, "text": "a rise"},
        {"metric": "ece", "depth": 0.9, "value": 0.2, "text": "a peak"},
    ]
    change = {"ece_change": 0.01, "ece_change_low": -0.01, "ece_change_high": 0.02}
    neurons = [
        {"without": name, "norm": norm, **change}
        for norm in ("live", "frozen")
        for name in ("neuron 3", "all 1 entropy neurons", "random set 00")
    ]
    shown = metrics[metrics["group"].isin(figures.measured(metrics, "subject"))]
    shown = shown[shown["metric"].isin(["accuracy", "signed_gap"])]
    phase = {**found, "tuned": found}
    return {
        "depth_curves": figures.depth_curves(metrics, found),
        "lenses": figures.lenses(both, phase),
        "letters": figures.letters(metrics, found, pd.Series({"A": 0.5, "B": 0.5})),
        "group_map": figures.group_map(shown, found),
        "reliability": figures.reliability(pd.concat(panels)),
        "entropy_neurons": figures.entropy_neurons(pd.DataFrame(neurons)),
        "atlas": figures.atlas(pd.concat(curves), pd.DataFrame(reported)),
    }


def test_rules_stand_above_what_reads_them():
    axis = figures.rule_graph([("a", "b"), ("b", "c"), ("a", "c"), ("d", "c")]).axes[0]
    place = {text.get_text(): text.get_position() for text in axis.texts if text.get_text()}
    assert place["a"][1] > place["b"][1] == place["d"][1] > place["c"][1]
    assert len([text for text in axis.texts if not text.get_text()]) == 3  # a to c goes by b


def test_rules_are_drawn_alike_in_whatever_order_they_come(rng):
    edges = [("a", "b"), ("b", "c"), ("a", "d"), ("d", "e"), ("c", "e"), ("f", "b"), ("c", "h")]

    def pdf(some):
        drawn = io.BytesIO()
        figures.rule_graph(some).savefig(drawn, format="pdf", metadata={"CreationDate": None})
        return drawn.getvalue()

    assert {pdf([edges[i] for i in rng.permutation(7)]) for _ in range(5)} == {pdf(edges)}


def test_where_there_is_nothing_to_show_a_figure_says_why():
    assert "one language" in figures.nothing("All are in one language.").texts[0].get_text()


def test_claims_as_latex():
    claim = {
        "claim": "50 % of a_b & c",
        "outcome": "undecided",
        "measure": "share of 90 %",
        "value": None,
        "ci_low": 2.0,
        "ci_high": None,
        "n": 7,
    }
    table = latex({"claims": [claim, {**claim, "measure": "change", "value": 0.1, "ci_high": 3}]})
    assert r"50 \% of a\_b \& c & undecided & share of 90 \% & none" in table
    assert "+0.100 & +2.000 to +3.000 & 7" in table
    assert all(rule in table for rule in (r"\toprule", r"\midrule", r"\bottomrule"))


def many_groups(metrics):
    """As many groups as a set of seven languages has."""
    one = metrics[metrics["group"] == "all"]
    return pd.concat([one.assign(group=f"language:{code}") for code in "abcdefg"])


def png(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def test_figures_are_labelled_and_not_blank(tables):
    for name, figure in draw(tables).items():
        axes = [axis for axis in figure.axes if axis.get_visible()]
        assert axes and all(axis.has_data() for axis in axes), name
        assert any(axis.get_xlabel() for axis in axes), name
        assert any(axis.get_ylabel() for axis in axes), name
        pixels = matplotlib.image.imread(io.BytesIO(png(figure)))[..., :3]
        assert 0.005 < (pixels < 0.9).any(-1).mean() < 0.6, name


def test_figures_are_the_same_file_each_time(tables):
    first, second = draw(tables), draw(tables)
    for name in first:
        assert png(first[name]) == png(second[name]), name


def test_curves_show_the_table(tables):
    metrics, found, *_ = tables
    axis = figures.layer_curves(metrics, found).axes[1]
    line = next(line for line in axis.get_lines() if line.get_label() == "ECE")
    rows = metrics.query("metric == 'ece' and n_bins == 10 and group == 'all'")
    np.testing.assert_allclose(line.get_ydata(), rows.sort_values("layer")["value"])


def test_metric_table_against_loops(tables, rng):
    """Accuracy, NLL, Brier and the signed gap of one group, question by question."""
    logits, answer = rng.normal(size=(2, 30, 4)), rng.integers(0, 4, 30)
    table = readings.metric_table(
        readings.Readings(logits, answer, {}), [10], [1], 100, 0
    ).set_index(["layer", "metric"])
    for layer in range(2):
        hits, nll, brier, gap = [], [], [], []
        for z, right in zip(logits[layer], answer, strict=True):
            p = np.exp(z) / np.exp(z).sum()
            hits.append(p.argmax() == right)
            nll.append(-np.log(p[right]))
            brier.append(sum((p[k] - (k == right)) ** 2 for k in range(4)))
            gap.append(p.max() - hits[-1])
        named = {"accuracy": hits, "nll": nll, "brier": brier, "signed_gap": gap}
        for metric, values in named.items():
            assert table.loc[(layer, metric), "value"] == pytest.approx(np.mean(values))
    assert (table["n"] == 30).all()
    assert table.loc[(0, "ece"), "null_mean"] > 0


def test_groups_count_clusters_and_not_copies(rng):
    """Forty forms of one question say no more than one: no interval of width 0."""
    cluster = np.concatenate([np.zeros(40), np.arange(1, 41), np.repeat(range(41, 50), 4)])
    n = len(cluster)
    read = readings.Readings(
        rng.normal(size=(2, n, 4)), rng.integers(0, 4, n), {}, cluster.astype(int)
    )
    groups = {"all": np.ones(n, bool), "copies": cluster == 0, "few": cluster > 40}
    groups["single"] = (cluster > 0) & (cluster <= 40)
    table = readings.group_table(read, groups, 10, ([10], [1], 100, 0))
    measured = table[table["value"].notna()]
    assert set(measured["group"]) == {"all", "single"}
    assert set(table.loc[table["group"] == "copies", "reason"]) == {
        "40 questions in 1 cluster(s), fewer than 10"
    }
    assert set(table.loc[table["group"] == "few", "reason"]) == {
        "36 questions in 9 cluster(s), fewer than 10"
    }
    with pytest.raises(
        InputError, match=r"40 questions in 1 cluster\(s\) in all, fewer than the 2"
    ):
        one = {"all": np.ones(40, bool)}
        readings.group_table(read.take(cluster == 0), one, 2, ([10], [1], 100, 0))


def test_languages_are_groups_of_their_own():
    prompts = pd.DataFrame({"subject": "s", "category": "c", "language": ["de", "th", "de"]})
    found = readings.groups(prompts)
    assert list(found) == ["all", "category:c", "subject:s", "language:de", "language:th"]
    assert found["language:de"].tolist() == [True, False, True]
    assert "language:de" not in readings.groups(prompts[prompts["language"] == "de"])


def test_groups_too_small_to_measure_are_not_drawn(tables):
    metrics = tables[0]
    assert figures.measured(metrics, "category") == ["category:Other"]
    assert figures.measured(metrics, "subject") == ["subject:anatomy", "subject:virology"]
    assert figures.measured(metrics[metrics["n"] < 20], "category") == []


def test_every_letter_is_drawn(rng):
    """Ten options, of which the last two are right never and often."""
    read = readings.Readings(rng.normal(size=(3, 60, 10)), np.repeat(range(9), 60)[:60], {})
    prompts = pd.DataFrame({"answer": [0, 8] * 30, "option_ids": [list(range(10))] * 60})
    table = readings.metric_table(read, [10], [1], 20, 0)
    table = table.assign(group="all", lens="logit", order="as-is")
    found = {"decision_layer": 1, "peak_layer": 1, "final_layer": 2, "exists": False}
    plate = plates.draw("letters", SimpleNamespace(prompts=prompts, metrics=table, phase=found))
    drawn = [line for line in plate.figure.axes[0].get_lines() if len(line.get_xdata()) == 3]
    named = {line.get_label().partition(" ")[0]: line for line in drawn}
    assert list(named) == list("ABCDEFGHIJ")
    assert named["I"].get_label() == "I (right answer in 50%)"
    assert named["J"].get_label() == "J (right answer in 0%)"
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == 10
    expected = (read.logits.argmax(-1) == 9).mean(-1)
    np.testing.assert_allclose(named["J"].get_ydata(), expected)
    assert set(plate.data["metric"]) == {f"predicted_{letter}" for letter in "ABCDEFGHIJ"}


def test_every_rule_of_the_null_space_is_drawn():
    rules = [f"k={k}" for k in range(1, 13)]
    shares = pd.DataFrame(
        {"layer": layer, "what": what, "rule": rule, "size": 3, "share": 0.1, "chance": 0.2}
        for layer in range(3)
        for what in ("residual", "update")
        for rule in rules
    )
    legend = figures.null_space(shares).axes[1].get_legend()
    assert [text.get_text().partition(" ")[0] for text in legend.get_texts()] == rules


SETTINGS = {
    "text.usetex": True,
    "font.size": 30,
    "font.family": "serif",
    "axes.grid": True,
    "axes.spines.top": True,
    "axes.formatter.use_locale": True,
    "lines.antialiased": False,
    "legend.loc": "best",
    "path.sketch": (1, 2, 3),
    "pdf.compression": 0,
    "pdf.fonttype": 3,
    "savefig.bbox": "tight",
    "savefig.transparent": True,
    "figure.facecolor": "red",
}


NO_DATE = {"CreationDate": None}


def test_figures_do_not_depend_on_a_users_matplotlibrc(tables):
    def files():
        shown = figures.layer_curves(*tables[:2]), figures.dimensions(tables[4])
        for figure in shown:
            for form in ("png", "pdf"):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=form, metadata={} if form == "png" else NO_DATE)
                yield buffer.getvalue()

    expected = list(files())
    with matplotlib.rc_context(SETTINGS):
        assert list(files()) == expected
