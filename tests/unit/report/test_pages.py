"""What the pages say, and that what they are told is text to them."""

import re
from types import SimpleNamespace

import pandas as pd
import pytest

from layercal.metrics import comparisons
from layercal.report import atlas, index, pages, tables

PHASE = {
    "n": 40,
    "reason": "Because <b>.",
    "outcome": "undecided",
    "exists": False,
    "top_letter": 0.625,
    "chance": 0.25,
    "accuracy_final": 0.5,
    "accuracy_final_low": 0.4,
    "accuracy_final_high": 0.6,
    "decision_layer": 1,
    "peak_layer": 1,
    "final_layer": 2,
    "ece_peak": 0.3,
    "ece_final": 0.1,
    "correction": 0.2,
    "ci_low": 0.1,
    "ci_high": 0.3,
}
CLAIM = {"key": "phase", "claim": "it <falls>", "outcome": "confirmed", "value": 0.2}
CLAIM |= {"ci_low": None, "ci_high": 1}


@pytest.fixture
def results():
    """Results of one model on one question set."""
    rows = [
        {"metric": metric, "n_bins": bins, "layer": layer, "value": 0.1 * layer, "n": 40}
        for metric, bins in (("accuracy", 0), ("ece", 10), ("ece", 15))
        for layer in range(3)
    ]
    same = {"group": "all", "lens": "logit", "order": "as-is", "ci_low": 0.0, "ci_high": 0.5}
    metrics = pd.DataFrame(rows).assign(**same, null_mean=0.1, null_high=0.2)
    metrics["primary"] = metrics["n_bins"] != 15
    steps = [
        {"layer": layer, "metric": metric, "value": 3.0 - layer, "ci_low": 0.5, "ci_high": 4.0}
        for layer in range(3)
        for metric in ("temperature", "scale_share", "knowledge_step", "scale_step")
    ]
    return SimpleNamespace(
        metrics=metrics,
        phase=PHASE,
        recalibration=pd.DataFrame(steps).assign(recalibration="temperature"),
        recalibrated_phase={**PHASE, "outcome": "no phase"},
        summary={"claims": [{**CLAIM, "n": 40}]},
        comparisons=pd.DataFrame(columns=comparisons.COLUMNS),
    )


def cells(page):
    """Text of the first row of the atlas, by heading."""
    heads = re.findall(r"<button>(.*?)</button>", page)
    row = re.search(r"<tbody>\s*<tr>(.*?)</tr>", page, re.S)[1]
    found = [re.sub("<.*?>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.S)]
    return dict(zip(heads, found, strict=True))


def test_the_atlas_names_the_outcome_and_the_top_letter(results):
    reports = {"m/<q>": results, "other/q": results}
    drawing = atlas.draw(reports)
    page = atlas.page(reports, drawing, {"PDF": "atlas.pdf"})
    row = cells(page)
    assert row["correction phase"] == "undecided" and row["share of the top letter"] == "0.625"
    assert row["T at peak"] == "2.000 [0.500, 4.000]" == row["scale share"]
    assert row["phase at a temperature a layer"] == "no phase"
    assert row["ECE, last layer"] == "0.200 [0.000, 0.500]" and row["report"] == "m/&lt;q&gt;"
    assert 'href="m/&lt;q&gt;.html"' in page and "<q>" not in page
    assert "<td>it &lt;falls&gt;</td><td>confirmed: +0.200 [no end, +1.000], n = 40</td>" in page
    assert page.count("near 0.20") == 2 and '<tr class="reported">' in page
    shown = drawing.data[drawing.data["report"] == "other/q"]
    assert shown["depth"].tolist() == [0, 0, 0.5, 0.5, 1, 1]


def compared(a, b, **row):
    """Row of the table of comparisons: NLL, unless it says otherwise."""
    names = dict(
        zip(comparisons.COLUMNS, [*a, *b, 40, "nll", 1.5, 1.2, -0.3, -0.5, -0.1], strict=False)
    )
    return {**names, "p": 0.0001, "p_holm": 0.0002, "outcome": "lower", "reason": "", **row}


def test_the_atlas_compares_what_shares_its_questions_or_its_model(results):
    rows = [
        compared(["m", "q"], ["<other>", "q"]),
        compared(["m", "q"], ["<other>", "q"], metric="correction", outcome="not applicable")
        | {"reason": "nothing to correct"},
        compared(["m", "q"], ["m", "q2"], p_holm=0.25, outcome="undecided"),
    ]
    results.comparisons = pd.DataFrame(rows)
    reports = {"m/q": results}
    page = atlas.page(reports, atlas.draw(reports), {})
    assert "Models on the same questions (1)" in page and page.count("<details open>") == 2
    page = page.replace("\N{NO-BREAK SPACE}", " ")
    lower = "lower: -0.300 [-0.500, -0.100], p &lt; 0.001"
    head = '<tr><th scope="col">questions</th><th scope="col">A</th><th scope="col">B</th>'
    assert head in page and '<th scope="col">correction</th>' in page
    assert f"<td>q</td><td>m</td><td>&lt;other&gt;</td><td>40</td><td>{lower}</td>" in page
    assert f"<td>{lower}</td><td>not applicable</td>" in page
    assert "<td>m</td><td>q</td><td>q2</td><td>40</td><td>undecided: -0.300" in page
    assert "-0.100], p = 0.25<" in page
    results.comparisons = pd.DataFrame(rows[:1] * 13).assign(model_b=[f"m{i}" for i in range(13)])
    assert "<details><summary>" in atlas.page(reports, atlas.draw(reports), {})


def test_the_atlas_of_one_reading_compares_nothing(results):
    reports = {"m/q": results}
    page = atlas.page(reports, atlas.draw(reports), {})
    assert "can be compared in this study" in page and "<details" not in page


def test_the_index_names_the_outcome(results):
    page = index.page({"m/q": results})
    assert "<td>undecided</td>" in page and "Because &lt;b&gt;." in page
    assert '<a href="m/figures/q/claims.tex">' in page
    assert "Layer 1, the peak of ECE, fits at T = 2.00 (95 % CI 0.50 to 4.00)" in page


def test_tables_are_escaped_and_say_what_is_missing():
    frame = pd.DataFrame({"<a>": ["confirmed", "<i>"], "b": [0.12345, float("nan")], "n": [1, 2]})
    html = pages.table(frame)
    assert '<th scope="col">&lt;a&gt;</th>' in html and '<td class="confirmed">confirmed' in html
    assert "<td>&lt;i&gt;</td><td>–</td><td>2</td>" in html and "<td>0.123</td><td>1</td>" in html


def test_a_page_lists_its_headings():
    body = '<h1>t</h1><h2 id="a-b">A <em>b</em><a class="anchor-link" href="#a-b">¶</a></h2>'
    assert '<a href="#a-b">A <em>b</em></a>' in pages.contents(body)
    page = pages.page("<t>", body)
    assert body in page and "<title>&lt;t&gt;</title>" in page and page.startswith("<!doctype")


def test_key_layers_are_shown_at_every_number_of_bins(results):
    shown = tables.key_layers(results)
    assert shown["layer"].unique().tolist() == [1, 2]
    assert shown["metric"].tolist() == ["accuracy", "ECE", "ECE"] * 2
    assert shown["bins"].tolist() == ["–", 10, 15] * 2
