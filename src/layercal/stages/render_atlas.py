"""Render the atlas: all models and question sets side by side, beside what the paper reports."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import pandas as pd

from layercal import files, results
from layercal.report import figures, pages
from layercal.stages import Output

# as notes of a third party on the paper give them; nothing here was measured by this study
REPORTED = {
    "name": "phi-2 on MMLU Humanities",
    "blocks": 32,
    "rise": (22, 26),
    "peak": 28,
    "ece_peak": 0.20,
    "ece_final": 0.08,
}
INTRO = """<h1>Atlas: calibration over relative depth</h1>
<p><a href="index.html">All reports</a></p>
<p>Every model on every question set of this study, read layer by layer through its own final norm
and unembedding. Relative depth is the layer over the number of blocks: 0 is the embedding, 1 the
last layer. Bands are 95 % intervals over questions. ECE depends on the number of questions n:
compare it with the null floor, what a perfectly calibrated model would show at that n.</p>"""
NOTE = """<p>Stars and the grey span are <strong>reference points reported for the paper, not
measured here</strong>: for phi-2 on MMLU Humanities, notes on Joshi, Ahmad and Modi (EMNLP 2025)
give accuracy rising over layers 22 to 26 of 32, ECE peaking near 0.20 around layer 28 and ending
near 0.08. They come without intervals, n or bins, and are here to be tested, not believed.</p>"""
SORT = """<script>
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach((one) => one.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");  // what is missing stays last
      const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows);
  }));
}
</script>"""
LOOK = """<style>
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
            padding: 0; text-align: left; cursor: pointer }
th button::after { content: " \\2195"; color: #555 }
th[aria-sort="ascending"] button::after { content: " \\2191" }
th[aria-sort="descending"] button::after { content: " \\2193" }
.sortable :is(th, td) { min-width: 5rem }
.sortable td:first-child { min-width: 11rem }
tr.reported { background: #f2f2f2; font-style: italic }
</style>"""


def render_atlas(
    *,
    pairs: list[str],
    metrics: list[Path],
    phases: list[Path],
    summaries: list[Path],
    html: Output,
    pdf: Output,
    csv: Output,
) -> None:
    """Write the page and its figure; names and texts are escaped."""
    for one in zip(metrics, phases, summaries, strict=True):
        results.same(*one)
    reached, found = (
        [json.loads(path.read_text()) for path in paths] for paths in (phases, summaries)
    )
    tables = [pd.read_parquet(path) for path in metrics]
    parts = [curves(*one) for one in zip(pairs, tables, reached, strict=True)]
    shown = pd.concat([*parts, reported()], ignore_index=True)
    drawn = figures.atlas(shown[shown["reported"].isna()], shown[shown["reported"].notna()])
    drawn.savefig(pdf, metadata={"CreationDate": None})
    rows = [row(*one) for one in zip(pairs, parts, reached, found, strict=True)]
    links = f'<a href="{pdf.name}">PDF</a>, <a href="{csv.name}">data (CSV)</a>'
    body = (
        f"{LOOK}{INTRO}{pages.image(drawn, _alt(pairs, reached), links)}{NOTE}"
        f'<h2 id="numbers">Numbers</h2><p>A click on a heading sorts by it.</p>'
        f"{sortable([*rows, reported_row()])}"
        f'<h2 id="claims">The paper\'s claims</h2><p>With the number that each rests on and its '
        f"95 % interval; the reports say more.</p>{claims(pairs, found)}{SORT}"
    )
    files.write_atomically(csv, shown.to_csv(index=False))
    files.write_atomically(html, pages.page("Atlas: calibration over depth", body))


def curves(report: str, metrics: pd.DataFrame, phase: dict) -> pd.DataFrame:
    """Accuracy and ECE of one report over relative depth."""
    primary = metrics.loc[metrics["metric"] == "ece", "n_bins"].iloc[0]
    chosen = metrics["group"].eq("all") & metrics["lens"].eq("logit")
    chosen &= metrics["order"].eq(phase["order"]) & metrics["n_bins"].isin([0, primary])
    rows = metrics[chosen & metrics["metric"].isin(["accuracy", "ece"])].sort_values("layer")
    columns = ["report", "layer", "depth", "metric", "value", "ci_low", "ci_high", "null_high", "n"]
    depth = rows["layer"] / phase["final_layer"]
    return rows.assign(report=report, depth=depth)[columns].assign(reported=None)


def reported() -> pd.DataFrame:
    """Reference points of the paper, in the form of :func:`curves`."""
    name, blocks = REPORTED["name"], REPORTED["blocks"]
    rise, until = REPORTED["rise"]
    text = f"reported, not measured here: {name}"
    rows = [
        {"metric": "accuracy", "layer": rise, "layer_to": until, "reported": f"{text}, rise"},
        {"metric": "ece", "layer": REPORTED["peak"], "value": REPORTED["ece_peak"]},
        {"metric": "ece", "layer": blocks, "value": REPORTED["ece_final"]},
    ]
    table = pd.DataFrame(rows).fillna({"reported": f"{text}, ECE at peak and end"})
    depth = {"depth": table["layer"] / blocks, "depth_to": table["layer_to"] / blocks}
    return table.assign(report=name, text=table["reported"], **depth)


def _alt(reports: list[str], phases: list[dict]) -> str:
    said = [
        f"{report}: accuracy {phase['accuracy_final']:.2f} at the end, ECE {phase['ece_peak']:.2f} "
        f"at its peak at depth {phase['peak_layer'] / phase['final_layer']:.2f}, "
        f"{phase['ece_final']:.2f} at the end"
        for report, phase in zip(reports, phases, strict=True)
    ]
    return f"Accuracy and ECE over relative depth. {'; '.join(said)}."


def row(report: str, shown: pd.DataFrame, phase: dict, summary: dict) -> dict:
    """Give one row of the table: heading -> (text, value to sort by)."""
    final = phase["final_layer"]
    last = shown[(shown["metric"] == "ece") & (shown["layer"] == final)].iloc[0]
    found = {
        "report": (report, report),
        "n": (str(phase["n"]), phase["n"]),
        "blocks": (str(final), final),
        "accuracy, last layer": _number(
            phase["accuracy_final"], phase["accuracy_final_low"], phase["accuracy_final_high"]
        ),
        "chance": _number(phase["chance"]),
        "decision layer (depth)": _depth(phase["decision_layer"], final),
        "ECE peak, layer (depth)": _depth(phase["peak_layer"], final),
        "ECE at peak": _number(phase["ece_peak"]),
        "ECE, last layer": _number(last["value"], last["ci_low"], last["ci_high"]),
        "null floor, last layer": _number(last["null_high"]),
        "correction": _number(phase["correction"], phase["ci_low"], phase["ci_high"]),
        "correction phase": 2 * ("exists" if phase["exists"] else "not claimed",),
    }
    for claim in summary["claims"]:
        if claim.get("change") == "nll":
            numbers = claim["value"], claim["ci_low"], claim["ci_high"]
            found[f"NLL change by steering, {claim['mode']}"] = _number(*numbers, sign="+")
    return found


def reported_row() -> dict:
    """What the paper's row of the table would hold."""
    blocks, peak = REPORTED["blocks"], REPORTED["peak"]
    fall = REPORTED["ece_peak"] - REPORTED["ece_final"]
    return {
        "report": 2 * (f"{REPORTED['name']} (reported, not measured here)",),
        "blocks": (str(blocks), blocks),
        "ECE peak, layer (depth)": _depth(peak, blocks),
        "ECE at peak": (f"near {REPORTED['ece_peak']:.2f}", REPORTED["ece_peak"]),
        "ECE, last layer": (f"near {REPORTED['ece_final']:.2f}", REPORTED["ece_final"]),
        "correction": (f"near {fall:.2f}", fall),
    }


def _number(value, low=None, high=None, sign="") -> tuple[str, float]:
    text = f"{value:{sign}.3f}"
    return (text if low is None else f"{text} [{low:{sign}.3f}, {high:{sign}.3f}]"), value


def _depth(layer: int, blocks: int) -> tuple[str, float]:
    return f"{layer} ({layer / blocks:.2f})", layer / blocks


def sortable(rows: list[dict]) -> str:
    """Give a table whose headings are buttons; the last row is what the paper reports."""
    names = list(dict.fromkeys(name for one in rows for name in one))
    head = "".join(f'<th scope="col"><button>{escape(name)}</button></th>' for name in names)
    body = ""
    for place, one in enumerate(rows):
        cells = [one.get(name, ("–", "")) for name in names]
        kind = ' class="reported"' if place == len(rows) - 1 else ""
        tds = "".join(
            f'<td data-value="{escape(str(key))}">{_linked(text, place, rows, name)}</td>'
            for name, (text, key) in zip(names, cells, strict=True)
        )
        body += f"<tr{kind}>{tds}</tr>"
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Numbers">'
        f'<table class="sortable"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _linked(text: str, place: int, rows: list[dict], name: str) -> str:
    if name == "report" and place < len(rows) - 1:
        return f'<a href="{escape(text)}.html">{escape(text)}</a>'
    return escape(text)


def claims(reports: list[str], summaries: list[dict]) -> str:
    """Give a table of the claims, one column a report."""
    found: dict[str, dict] = {}
    for report, summary in zip(reports, summaries, strict=True):
        for claim in summary["claims"]:
            found.setdefault(claim["claim"], {})[report] = _said(claim)
    return pages.table(
        pd.DataFrame(found).T.rename_axis("claim").reset_index()[["claim", *reports]]
    )


def _said(claim: dict) -> str:
    if claim["outcome"] == "not applicable" or claim["value"] is None:
        return claim["outcome"]
    low, high = (
        "no end" if claim[end] is None else f"{claim[end]:+.3f}" for end in ("ci_low", "ci_high")
    )
    return f"{claim['outcome']}: {claim['value']:+.3f} [{low}, {high}], n = {claim['n']}"
