"""The atlas: all models and question sets side by side, beside what the paper reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from layercal.metrics.recalibration import TEMPERATURE
from layercal.report import pages, tables, words
from layercal.report.figures import study
from layercal.report.figures.registry import Drawing
from layercal.results import Results, select
from layercal.steering.verdicts import p_in_words


# as notes of a third party on the paper give them; nothing here was measured by this study
class Reported(NamedTuple):
    """Readings off the paper's figures."""

    name: str = "phi-2 on MMLU Humanities"
    blocks: int = 32
    rise: tuple[int, int] = (22, 26)
    peak: int = 28
    ece_peak: float = 0.20
    ece_final: float = 0.08


REPORTED = Reported()
NO_BREAK = "\N{NO-BREAK SPACE}"
UNFOLDED = 12  # comparisons up to which a table stands open


@dataclass(frozen=True)
class Cell:
    """Text of a cell, the value to sort by, and where it leads."""

    text: str
    key: str | float
    link: str = ""


def draw(reports: dict[str, Results]) -> Drawing:
    """Draw accuracy and ECE of all reports over relative depth.

    Parameters
    ----------
    reports : dict of Results
        By model/questions.
    """
    curves, points = pd.concat([_curves(*report) for report in reports.items()]), _reported()
    figure = study.plot_atlas(curves, points)
    return Drawing(figure, pd.concat([curves, points], ignore_index=True), _alt(reports))


def page(reports: dict[str, Results], drawing: Drawing, links: dict[str, str]) -> str:
    """Render the page; names and texts are escaped.

    Parameters
    ----------
    reports : dict of Results
        By model/questions.
    drawing : Drawing
        From :func:`draw`.
    links : dict of str
        Text -> where it leads, below the figure.
    """
    rows = [*(_row(*report) for report in reports.items()), _reported_row()]
    return pages.render(
        "atlas.html",
        title="Atlas: calibration over depth",
        figure=pages.image(drawing.png(), "", links),
        reported=REPORTED,
        headings=list(dict.fromkeys(name for row in rows for name in row)),
        rows=rows,
        missing=Cell("–", ""),
        compared=[
            (title, len(frame), pages.table(frame))
            for title, frame in _compared(next(iter(reports.values())).comparisons)
        ],
        unfolded=UNFOLDED,
        claims=pages.table(_claims(reports)),
    )


def _curves(report: str, results: Results) -> pd.DataFrame:
    """Accuracy and ECE of one report over relative depth."""
    rows = select(results.metrics, ["accuracy", "ece"]).sort_values("layer", kind="stable")
    columns = ["report", "layer", "depth", "metric", "value", "ci_low", "ci_high", "null_high", "n"]
    depth = rows["layer"] / results.phase["final_layer"]
    return rows.assign(report=report, depth=depth)[columns].assign(reported=None)


def _reported() -> pd.DataFrame:
    """Reference points of the paper, in the form of :func:`_curves`."""
    name, blocks = REPORTED.name, REPORTED.blocks
    rise, until = REPORTED.rise
    text = f"reported, not measured here: {name}"
    rows = [
        {"metric": "accuracy", "layer": rise, "layer_to": until, "reported": f"{text}, rise"},
        {"metric": "ece", "layer": REPORTED.peak, "value": REPORTED.ece_peak},
        {"metric": "ece", "layer": blocks, "value": REPORTED.ece_final},
    ]
    table = pd.DataFrame(rows).fillna({"reported": f"{text}, ECE at peak and end"})
    depth = {"depth": table["layer"] / blocks, "depth_to": table["layer_to"] / blocks}
    return table.assign(report=name, text=table["reported"], **depth)


def _alt(reports: dict[str, Results]) -> str:
    said = [
        f"{report}: accuracy {phase['accuracy_final']:.2f} at the end, ECE {phase['ece_peak']:.2f} "
        f"at its peak at depth {phase['peak_layer'] / phase['final_layer']:.2f}, "
        f"{phase['ece_final']:.2f} at the end"
        for report, phase in ((report, results.phase) for report, results in reports.items())
    ]
    return f"Accuracy and ECE over relative depth. {'; '.join(said)}."


def _row(report: str, results: Results) -> dict[str, Cell]:
    """One row of the table, by heading."""
    phase, final = results.phase, results.phase["final_layer"]
    errors = select(results.metrics, "ece")
    last = errors[errors["layer"] == final].iloc[0]
    cells = {
        "report": Cell(report, report, f"{report}.html"),
        "n": Cell(str(phase["n"]), phase["n"]),
        "blocks": Cell(str(final), final),
        "accuracy, last layer": _number(
            phase["accuracy_final"], phase["accuracy_final_low"], phase["accuracy_final_high"]
        ),
        "chance": _number(phase["chance"]),
        "share of the top letter": _number(phase["top_letter"]),
        "correction phase": Cell(phase["outcome"], phase["outcome"]),
        "decision layer (depth)": _depth(phase["decision_layer"], final),
        "ECE peak, layer (depth)": _depth(phase["peak_layer"], final),
        "ECE at peak": _number(phase["ece_peak"]),
        "ECE, last layer": _number(last["value"], last["ci_low"], last["ci_high"]),
        "null floor, last layer": _number(last["null_high"]),
        "correction": _number(phase["correction"], phase["ci_low"], phase["ci_high"]),
        **_recalibrated(results),
    }
    for claim in results.summary["claims"]:
        if claim["key"] == "lowers-nll":
            cells[f"NLL change by steering, {claim['mode']}"] = _number(
                claim["value"], claim["ci_low"], claim["ci_high"], sign="+"
            )
    return cells


def _recalibrated(results: Results) -> dict[str, Cell]:
    """What one temperature a layer leaves."""
    peak, left = results.phase["peak_layer"], results.recalibrated_phase["outcome"]
    cells = {}
    for heading, metric in (("T at peak", "temperature"), ("scale share", "scale_share")):
        rows = words.recalibrated(results, TEMPERATURE, metric).reindex([peak])
        if np.isfinite(rows[["ci_low", "ci_high"]]).all(axis=None):
            cells[heading] = _number(*rows[["value", "ci_low", "ci_high"]].iloc[0])
    return {**cells, "phase at a temperature a layer": Cell(left, left)}


def _reported_row() -> dict[str, Cell]:
    """What the paper's row of the table would hold."""
    name, blocks, peak = REPORTED.name, REPORTED.blocks, REPORTED.ece_peak
    fall, text = peak - REPORTED.ece_final, f"{name} (reported, not measured here)"
    return {
        "report": Cell(text, text),
        "blocks": Cell(str(blocks), blocks),
        "ECE peak, layer (depth)": _depth(REPORTED.peak, blocks),
        "ECE at peak": Cell(f"near {peak:.2f}", peak),
        "ECE, last layer": Cell(f"near {REPORTED.ece_final:.2f}", REPORTED.ece_final),
        "correction": Cell(f"near {fall:.2f}", fall),
    }


def _number(
    value: float, low: float | None = None, high: float | None = None, sign: str = ""
) -> Cell:
    text = f"{value:{sign}.3f}"
    return Cell(text if low is None else f"{text} [{low:{sign}.3f}, {high:{sign}.3f}]", value)


def _depth(layer: int, blocks: int) -> Cell:
    return Cell(f"{layer} ({layer / blocks:.2f})", layer / blocks)


def _compared(compared: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Tables of what shares its question set, and of what shares its model, each with a title."""
    titled = []
    for title, same, differs in (
        ("Models on the same questions", "questions", "model"),
        ("One model, asked in different ways", "model", "questions"),
    ):
        alike = compared[compared[f"{same}_a"].eq(compared[f"{same}_b"])]
        names = {f"{same}_a": same, f"{differs}_a": "A", f"{differs}_b": "B", "n": "n"}
        rows = [
            dict(zip(names.values(), pair, strict=True))
            | {_heading(row["metric"]): _change(row) for row in of.to_dict("records")}
            for pair, of in alike.groupby([*names], sort=False)
        ]
        if rows:
            titled.append((title, pd.DataFrame(rows)))
    return titled


def _heading(metric: str) -> str:
    return tables.JUDGED.get(metric, metric)


def _change(row: dict) -> str:
    """What a comparison comes to, in words; lines break between them, not within."""
    if row["reason"]:
        return row["outcome"]
    ends = f"[{row['ci_low']:+.3f}, {row['ci_high']:+.3f}]".replace(" ", NO_BREAK)
    p = p_in_words(row["p_holm"]).replace(" ", NO_BREAK)
    return f"{row['outcome']}: {row['change']:+.3f} {ends}, {p}"


def _claims(reports: dict[str, Results]) -> pd.DataFrame:
    """The claims, one column a report."""
    said = {
        report: {claim["claim"]: _said(claim) for claim in results.summary["claims"]}
        for report, results in reports.items()
    }
    return pd.DataFrame(said).fillna("not steered so").rename_axis("claim").reset_index()


def _said(claim: dict) -> str:
    if claim["outcome"] == "not applicable" or claim["value"] is None:
        return claim["outcome"]
    low, high = (
        "no end" if claim[end] is None else f"{claim[end]:+.3f}" for end in ("ci_low", "ci_high")
    )
    return f"{claim['outcome']}: {claim['value']:+.3f} [{low}, {high}], n = {claim['n']}"
