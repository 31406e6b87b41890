"""Figures: every one is labelled, not blank, and the same file each time."""

import io
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from sweeps import PRIMARY, tallied

from layercal import InputError
from layercal.ablation.table import Ablated, ablations
from layercal.metrics import accuracy, phase, readings, resampling
from layercal.report import figures, pages
from layercal.report import tables as printed
from layercal.report.figures import registry, study
from layercal.results import select
from layercal.steering import dimensions, evaluation, verdicts
from layercal.steering.steered import Steered
from layercal.steering.tally import ALL_CONTROLS


@pytest.fixture
def tables(rng):
    read = readings.Readings(
        logits=rng.normal(size=(6, 60, 4)) * np.arange(1, 7)[:, None, None],
        answer=rng.integers(0, 4, 60),
        extra={"option_mass": rng.random((6, 60)), "entropy": rng.random((6, 60))},
    )
    subjects = ["anatomy"] * 30 + ["virology"] * 25 + ["physics"] * 5
    prompts = pd.DataFrame({"subject": subjects, "category": "Other", "language": "en", "flag": ""})
    prompts.loc[prompts["subject"] == "physics", "category"] = "STEM"
    groups = readings.groups(prompts)
    metrics = readings.group_table(
        read, groups, 20, n_bins=[10, 15], min_count=[1, 30], draws=100, seed=0
    )
    metrics = metrics.assign(lens="logit", order="as-is", primary=metrics["n_bins"].isin([0, 10]))
    weights = resampling.resample_weights(60, 100, 0)
    known = accuracy.above_chance(read.logits[-1].argmax(-1), read.answer)
    found = phase.detect(read.confidence, read.correct, weights, known).to_json()
    steered, fold = rng.normal(size=(60, 4, 2, 3, 4)), np.arange(60) % 3
    fitted = steered[:, None, :3]
    made = evaluation.Sweep(
        steered={"lens": Steered(fitted, fitted, steered[:, 3:], np.ones((60, 3, 2, 3)))},
        controls=tallied(steered, read.answer, fold, np.arange(60) < 30, [-1.0, 0.0, 1.0]),
        answer=read.answer,
        fold=fold,
        cluster=np.arange(60),
        norms=np.ones(6),
        directions=[PRIMARY],
        layers=[4, 5],
        alphas=[-1.0, 0.0, 1.0],
        accuracy_margin=0.02,
        n_bins=10,
        draws=100,
        seed=0,
    )
    directions = pd.DataFrame(
        {"layer": np.tile(range(1, 6), 2), "cosine": rng.random(10), "name": "update-mean"}
    )
    first = np.arange(60) < 30
    halves = {
        readings.Group("category", name): inside
        for name, inside in zip("AB", (first, ~first), strict=True)
    }
    rows = [
        row
        for source in halves
        for row in verdicts.transfer(made, halves, {PRIMARY: source})
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
        Ablated(name=f"{part} {b}", what="block", block=b, part=part): rng.normal(size=(60, 4))
        for b in (4, 5)
        for part in ("attention", "mlp")
    }
    ablated = pd.DataFrame(ablations(made, read.logits[5], parts))
    return metrics, found, *steered, shares, ablated


def draw(tables):
    metrics, found, sweep, directions, by_rank, transfer, shares, ablated = tables
    of_mode = sweep[sweep["mode"] == "lens"]
    groups = figures.groups.measured(metrics, "category")
    return {
        **draw_readings(metrics, found),
        "layer_curves": figures.curves.plot_layer_curves(rows_of(metrics), found, "a model"),
        "group_curves": figures.groups.plot_group_curves(rows_of(metrics, groups)),
        "many_groups": figures.groups.plot_group_curves(many_groups(rows_of(metrics))),
        "dose_response": figures.steering.plot_dose_response(
            of_mode, ["update-mean"], ALL_CONTROLS
        ),
        "cosines": figures.directions.plot_cosines(directions),
        "dimensions": figures.directions.plot_dimensions(by_rank),
        "transfer": figures.steering.plot_transfer(transfer),
        "null_space": figures.ablation.plot_null_space(shares),
        "ablations": figures.ablation.plot_ablations(ablated),
    }


def rows_of(metrics, groups="all"):
    """Primary rows of all metrics."""
    return select(metrics, list(metrics["metric"].unique()), groups)


def draw_readings(metrics, found):
    """What shows one reading, and what shows no reading at all."""
    rows = rows_of(metrics)
    both = pd.concat([rows, rows.assign(lens="tuned")])
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
    shown = metrics[metrics["group"].isin(figures.groups.measured(metrics, "subject"))]
    shown = shown[shown["metric"].isin(["accuracy", "signed_gap"])]
    phase, answers = {**found, "tuned": found}, pd.Series({"A": 0.5, "B": 0.5})
    return {
        "depth_curves": figures.curves.plot_depth_curves(rows, found),
        "lenses": figures.curves.plot_lenses(both, phase),
        "letters": figures.curves.plot_letters(rows, found, answers),
        "group_map": figures.groups.plot_group_map(shown, found),
        "reliability": figures.reliability.plot_reliability(pd.concat(panels)),
        "entropy_neurons": figures.ablation.plot_neurons(neurons()),
        "atlas": study.plot_atlas(pd.concat(curves), pd.DataFrame(reported)),
    }


def neurons():
    """Rows of neurons.parquet."""
    kinds = {"neuron 3": "neuron", "all 1 entropy neurons": "entropy neurons"}
    kinds["random set 00"] = "random neurons"
    change = {"ece_change": 0.01, "ece_change_low": -0.01, "ece_change_high": 0.02}
    return pd.DataFrame(
        {"without": name, "what": what, "norm": norm, **change}
        for norm in ("live", "frozen")
        for name, what in kinds.items()
    )


def test_a_figure_of_one_panel_is_drawn_on_axes_that_are_given(tables):
    metrics, found, _, directions, *_ = tables
    rows, answers = rows_of(metrics), pd.Series({"A": 0.5, "B": 0.5})
    bins = readings.reliability(np.linspace(0, 1, 50), np.arange(50) % 2, 10).assign(state="as is")
    shared = matplotlib.figure.Figure()
    axes = shared.subplots(1, 4)
    figures.curves.plot_letters(rows, found, answers, axes[0])
    figures.directions.plot_cosines(directions, axes[1])
    figures.ablation.plot_neurons(neurons(), axes[2])
    figures.reliability.plot_reliability_panel(bins, axes[3])
    assert shared.axes == list(axes) and all(panel.has_data() for panel in axes)


def test_a_drawn_file_says_what_it_shows(tables):
    metrics, found, *_ = tables
    results = SimpleNamespace(metrics=metrics, phase=found)
    drawing = figures.draw("layer-curves", results)
    html = str(pages.image(drawing.png(), "A <caption>.", {"PDF": "a.pdf", "CSV": "a.csv"}))
    assert drawing.alt.startswith("Curves of accuracy") and f'alt="{drawing.alt}"' in html
    assert "A &lt;caption&gt;." in html and '<a href="a.pdf">PDF</a>, <a href="a.csv">' in html
    assert "max-width: 53rem" in html  # 8.5 inches
    single = SimpleNamespace(prompts=pd.DataFrame({"language": ["en"] * 2}))
    drawing = figures.draw("languages", single)
    html = str(pages.image(drawing.png(), "A caption.", {}))
    assert html.strip() == "<p>All questions are in one language.</p>"


def test_rules_stand_above_what_reads_them():
    axis = study.plot_rules([("a", "b"), ("b", "c"), ("a", "c"), ("d", "c")]).axes[0]
    place = {text.get_text(): text.get_position() for text in axis.texts if text.get_text()}
    assert place["a"][1] > place["b"][1] == place["d"][1] > place["c"][1]
    assert len([text for text in axis.texts if not text.get_text()]) == 3  # a to c goes by b


def test_rules_are_drawn_alike_in_whatever_order_they_come(rng):
    edges = [("a", "b"), ("b", "c"), ("a", "d"), ("d", "e"), ("c", "e"), ("f", "b"), ("c", "h")]

    def pdf(some):
        drawn = io.BytesIO()
        study.plot_rules(some).savefig(drawn, format="pdf", metadata={"CreationDate": None})
        return drawn.getvalue()

    assert {pdf([edges[i] for i in rng.permutation(7)]) for _ in range(5)} == {pdf(edges)}


def test_where_there_is_nothing_to_show_a_figure_says_why():
    assert "one language" in registry.plot_nothing("All are in one language.").texts[0].get_text()


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
    claims = pd.DataFrame([claim, {**claim, "measure": "change", "value": 0.1, "ci_high": 3}])
    table = printed.claims_latex(claims)
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
    axis = figures.curves.plot_layer_curves(rows_of(metrics), found).axes[1]
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
    masks = {"copies": cluster == 0, "few": cluster > 40, "single": (cluster > 0) & (cluster <= 40)}
    groups = {readings.Group("subject", name): rows for name, rows in masks.items()}
    groups = {readings.Group(): np.ones(n, bool), **groups}
    settings = {"n_bins": [10], "min_count": [1], "draws": 100, "seed": 0}
    table = readings.group_table(read, groups, 10, **settings)
    measured = table[table["value"].notna()]
    assert set(measured["group"]) == {"all", "subject:single"}
    assert set(measured["group_kind"]) == {"all", "subject"}
    assert set(table.loc[table["group_name"] == "copies", "reason"]) == {
        "40 questions in 1 cluster(s), fewer than 10"
    }
    assert set(table.loc[table["group_name"] == "few", "reason"]) == {
        "36 questions in 9 cluster(s), fewer than 10"
    }
    with pytest.raises(
        InputError, match=r"40 questions in 1 cluster\(s\) in all, fewer than the 2"
    ):
        one = {readings.Group(): np.ones(40, bool)}
        readings.group_table(
            read.take(cluster == 0), one, 2, n_bins=[10], min_count=[1], draws=100, seed=0
        )


def test_languages_are_groups_of_their_own():
    prompts = pd.DataFrame(
        {"subject": "s", "category": "c", "language": ["de", "th", "de"], "flag": ""}
    )
    found = readings.groups(prompts)
    named = ["all", "category:c", "subject:s", "language:de", "language:th"]
    assert list(map(str, found)) == named
    german = readings.Group("language", "de")
    assert found[german].tolist() == [True, False, True]
    assert german not in readings.groups(prompts[prompts["language"] == "de"])


def test_groups_too_small_to_measure_are_not_drawn(tables):
    metrics = tables[0]
    assert figures.groups.measured(metrics, "category") == ["category:Other"]
    assert figures.groups.measured(metrics, "subject") == ["subject:anatomy", "subject:virology"]
    assert figures.groups.measured(metrics[metrics["n"] < 20], "category") == []


def test_every_letter_is_drawn(rng):
    """Ten options, of which the last two are right never and often."""
    read = readings.Readings(rng.normal(size=(3, 60, 10)), np.repeat(range(9), 60)[:60], {})
    prompts = pd.DataFrame({"answer": [0, 8] * 30, "option_ids": [list(range(10))] * 60})
    table = readings.metric_table(read, [10], [1], 20, 0)
    table = table.assign(group="all", lens="logit", order="as-is", primary=True)
    found = {"decision_layer": 1, "peak_layer": 1, "final_layer": 2, "exists": False}
    drawing = figures.draw("letters", SimpleNamespace(prompts=prompts, metrics=table, phase=found))
    drawn = [line for line in drawing.figure.axes[0].get_lines() if len(line.get_xdata()) == 3]
    named = {line.get_label().partition(" ")[0]: line for line in drawn}
    assert list(named) == list("ABCDEFGHIJ")
    assert named["I"].get_label() == "I (right answer in 50%)"
    assert named["J"].get_label() == "J (right answer in 0%)"
    assert len({(line.get_color(), line.get_marker()) for line in drawn}) == 10
    expected = (read.logits.argmax(-1) == 9).mean(-1)
    np.testing.assert_allclose(named["J"].get_ydata(), expected)
    assert set(drawing.data["metric"]) == {f"predicted_{letter}" for letter in "ABCDEFGHIJ"}


def test_every_rule_of_the_null_space_is_drawn():
    rules = [f"k={k}" for k in range(1, 13)]
    shares = pd.DataFrame(
        {"layer": layer, "what": what, "rule": rule, "size": 3, "share": 0.1, "chance": 0.2}
        for layer in range(3)
        for what in ("residual", "update")
        for rule in rules
    )
    legend = figures.ablation.plot_null_space(shares).axes[1].get_legend()
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
        shown = (
            figures.curves.plot_layer_curves(rows_of(tables[0]), tables[1]),
            figures.directions.plot_dimensions(tables[4]),
        )
        for figure in shown:
            for form in ("png", "pdf"):
                buffer = io.BytesIO()
                figure.savefig(buffer, format=form, metadata={} if form == "png" else NO_DATE)
                yield buffer.getvalue()

    expected = list(files())
    with matplotlib.rc_context(SETTINGS):
        assert list(files()) == expected
