"""What the correction is: temperatures, what is calibration and what knowledge, confidences."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from layercal.metrics.recalibration import (
    ISOTONIC,
    KNOWLEDGE,
    NONE,
    SCALE,
    TEMPERATURE,
    TEMPERATURES,
    VECTOR,
)
from layercal.report import style, words
from layercal.report.figures.curves import DEPTH, band, mark_phase, name_marks
from layercal.report.figures.registry import Drawing, figure
from layercal.report.style import BESIDE, GREY, INK, PALETTE
from layercal.report.tables import DEFINED
from layercal.results import PARTS, Results

# score -> label, and what recalibrates it beside one temperature
SCORES = {
    "nll": ("NLL (nats)", VECTOR),
    "brier": ("Brier score", ISOTONIC),
}
STEPS = {KNOWLEDGE: ("knowledge", PALETTE[0]), SCALE: ("scale", PALETTE[1])}


@figure(
    "correction",
    "Top: score of each layer as it is, at its own temperature, and after what also shifts letters "
    "(vector scaling) or maps confidence freely (isotonic regression, the other options in "
    "proportion), all fitted on other questions. What a temperature gains is scale; what is left "
    "is what the layer does not know. "
    "Bottom: fall of NLL from the layer below, by knowledge (both layers at their temperatures) "
    "and by scale (what a temperature still gains); full where the 95 % interval, for all layers "
    "at once, excludes 0.",
)
def refinement(results: Results) -> Drawing:
    """Which layers add knowledge, and which only scale it."""
    rows = results.recalibration
    shown = rows[rows["metric"].isin([*SCORES, *STEPS])]
    alt = (
        "NLL and Brier score over the layers before and after recalibration, and what each layer "
        f"adds. {words.steps(results)}"
    )
    return Drawing(plot_refinement(shown, results.phase), shown, alt)


@figure(
    "correction",
    "Top: temperature that fits each layer best, above 1 where it is overconfident; no band where "
    "none fits, for the layer does not know the answers. Bottom: ECE as it is and after "
    "recalibration on other questions. Bands: 95 % CI.",
)
def temperatures(results: Results) -> Drawing:
    """Whether one temperature a layer takes the phase away."""
    rows = results.recalibration
    shown = rows[rows["metric"].isin(["temperature", "ece"])]
    alt = f"Temperature and ECE over the layers. {words.phase_left(results)}"
    return Drawing(plot_temperatures(shown, results.phase), shown, alt)


@figure(
    "halves",
    "Fall of NLL by attention and by MLP of each block, by knowledge (stream before and after at "
    "their temperatures) and by scale (what a temperature still gains); full where the 95 % "
    "interval, for all parts at once, excludes 0.",
)
def halves(results: Results) -> Drawing | str:
    """Which half of each block adds knowledge, and which scales it."""
    table = results.steps
    if not len(table):
        return "Blocks of this model have no stream between attention and MLP that can be read."
    shown = table[table["first_block"].eq(table["last_block"]) & table["metric"].isin(STEPS)]
    alt = f"Fall of NLL by attention and MLP of each block. {words.halves(results)}"
    return Drawing(plot_halves(shown, results.phase), shown, alt)


@figure(
    "norm",
    "Each layer read as it is, with the final norm's scale taken from the last layer, and at the "
    "temperature that fits it (cross-fitted; of NLL). Band: 95 % CI of the change.",
)
def norm(results: Results) -> Drawing:
    """How much of the correction the norm's scale alone carries."""
    table, final = results.norm, results.phase["final_layer"]
    shown = table[table["norm_layer"].eq(final) | table["norm_layer"].eq(table["layer"])]
    alt = f"NLL and ECE over the layers, by whose scale the norm divides. {words.norm(results)}"
    scaled = _of(results.recalibration, TEMPERATURE, "nll")
    return Drawing(plot_norm(shown, scaled, results.phase), shown, alt)


@figure(
    "confidence",
    "ECE and mean confidence less accuracy, with confidence as the probability of the chosen "
    "letter among the options, or among all tokens of the vocabulary. Bands: 95 % CI.",
)
def normalisations(results: Results) -> Drawing:
    """What the definition of confidence does to the curve."""
    rows = defined(results)
    final = rows[rows["layer"].eq(results.phase["final_layer"]) & rows["metric"].eq("ece")]
    said = "; ".join(f"{row.confidence}: {row.value:.2f}" for row in final.itertuples())
    alt = f"ECE and signed gap over the layers by definition of confidence. ECE at the end: {said}."
    return Drawing(plot_normalisations(rows, results.phase), rows, alt)


def defined(results: Results) -> pd.DataFrame:
    """ECE and signed gap of each layer by definition of ``confidence``."""
    rows = results.recalibration
    columns = ["layer", "confidence", "metric", "value", "ci_low", "ci_high"]
    parts = [
        _of(rows, NONE, f"{prefix}{metric}").assign(confidence=name, metric=metric)
        for prefix, name in DEFINED.items()
        for metric in ("ece", "signed_gap")
    ]
    return pd.concat(parts, ignore_index=True)[columns]


def plot_refinement(rows: pd.DataFrame, phase: dict) -> Figure:
    """Scores over the layers, split into calibration and knowledge, and what each layer adds.

    Parameters
    ----------
    rows : DataFrame
        Of ``recalibration.parquet``.
    phase : dict
        ``phase.json``; so for the others.
    """
    drawn = style.new(9.6, 6.8)
    top, bottom = drawn.subplots(2, 2, sharex=True)
    for axes, (metric, (label, other)) in zip(top, SCORES.items(), strict=True):
        _score_panel(axes, rows, metric, other)
        axes.set(ylabel=label, ylim=(0, None), xlim=(-0.5, phase["final_layer"] + 0.5))
    for axes, (metric, (label, color)) in zip(bottom, STEPS.items(), strict=True):
        _step_panel(axes, _of(rows, TEMPERATURE, metric), color)
        axes.set(xlabel=DEPTH, ylabel=f"fall of NLL by {label}\nfrom the layer below (nats)")
    for axes in (*top, *bottom):
        axes.axvline(phase["peak_layer"], color=GREY, zorder=0, **style.PEAK, label="peak of ECE")
    style.shared_legend(drawn, ncols=3)
    return drawn


def plot_halves(rows: pd.DataFrame, phase: dict) -> Figure:
    """Fall of NLL by each part of each block, through knowledge and through scale.

    Parameters
    ----------
    rows : DataFrame
        Steps of single blocks in ``steps.parquet``.
    phase : dict
    """
    drawn = style.new(9.6, 5.8)
    panels = drawn.subplots(len(PARTS), len(STEPS), sharex=True, sharey="col")
    for line, part in zip(panels, PARTS, strict=True):
        for axes, (metric, (label, color)) in zip(line, STEPS.items(), strict=True):
            of_part = rows[rows["part"].eq(part) & rows["metric"].eq(metric)]
            _step_panel(axes, of_part.rename(columns={"last_block": "layer"}), color)
            axes.axvline(phase["peak_layer"], color=GREY, zorder=0, **style.PEAK)
            axes.set(ylabel=f"{label}, by {words.PART_NAMES[part]}\n(nats)")
    for axes in panels[-1]:
        axes.set(xlabel="block (dotted: peak of ECE)")
    return drawn


def plot_norm(rows: pd.DataFrame, scaled: pd.DataFrame, phase: dict) -> Figure:
    """NLL and ECE over the layers with their norm's scale, and with that of the last layer.

    Parameters
    ----------
    rows : DataFrame
        Of ``norm.parquet``: each layer under its own scale and under the last one's.
    scaled : DataFrame
        NLL of each layer at its temperature, of ``recalibration.parquet``.
    phase : dict
    """
    drawn = style.new(8.5, 5.6)
    panels = dict(zip(("nll", "ece"), drawn.subplots(2, 1, sharex=True), strict=True))
    before = rows[rows["norm_layer"].eq(rows["layer"])].set_index("layer")
    patched = rows[rows["norm_layer"].eq(phase["final_layer"])].set_index("layer")
    low, high = (before["nll"] - patched[f"nll_gain_{end}"] for end in ("high", "low"))
    panels["nll"].fill_between(patched.index, low, high, color=PALETTE[1], alpha=0.2, lw=0)
    for metric, axes in panels.items():
        axes.plot(before.index, before[metric], label="as it is", **style.look(3))
        label = f"with the norm's scale\nof layer {phase['final_layer']}"
        axes.plot(patched.index, patched[metric], label=label, **style.look(1))
        mark_phase(axes, phase)
    at = scaled["layer"], scaled["value"]
    panels["nll"].plot(*at, label="at its temperature", **style.look(2))
    panels["nll"].set(ylabel="NLL (nats)", ylim=(0, None))
    panels["ece"].set(ylabel="ECE", xlabel=DEPTH, ylim=(0, None), xlim=(0, phase["final_layer"]))
    name_marks(panels["nll"], phase)
    panels["nll"].legend(**BESIDE)
    return drawn


def _score_panel(axes: Axes, rows: pd.DataFrame, metric: str, other: str) -> None:
    before, scaled, mapped = (_of(rows, name, metric) for name in (NONE, TEMPERATURE, other))
    layer, most, least = before["layer"], before["value"], scaled["value"].to_numpy()
    label = "scale: what a temperature gains"
    axes.fill_between(layer, least, most, color=PALETTE[1], label=label, alpha=0.25, lw=0)
    label = "left at a temperature: not known"
    axes.fill_between(layer, 0, least, color=PALETTE[0], label=label, alpha=0.25, lw=0)
    axes.plot(layer, most, color=PALETTE[1], lw=1.8)
    axes.plot(layer, least, color=PALETTE[0], lw=1.8)
    dashes = {VECTOR: "--", ISOTONIC: "-."}[other]
    axes.plot(layer, mapped["value"], color=INK, lw=1.1, ls=dashes, label=f"left after {other}")


def _step_panel(axes: Axes, steps: pd.DataFrame, color: tuple[float, ...]) -> None:
    """Fall of NLL at each layer from the one below, full where it is sure."""
    sure = (steps["ci_low"] > 0) | (steps["ci_high"] < 0)
    colors = [(*color, 1.0 if one else 0.25) for one in sure]
    axes.bar(steps["layer"], steps["value"], 0.7, color=colors, edgecolor=color, lw=0.7)
    reach = steps["value"] - steps["ci_low"], steps["ci_high"] - steps["value"]
    at = steps["layer"], steps["value"]
    axes.errorbar(*at, reach, ls="", ecolor=INK, elinewidth=0.7, capsize=1.5)
    axes.axhline(0, color=INK, lw=0.7)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def plot_temperatures(rows: pd.DataFrame, phase: dict) -> Figure:
    """Optimal temperature, and ECE before and after recalibration, over the layers."""
    drawn = style.new(8.5, 6.2)
    top, bottom = drawn.subplots(2, 1, sharex=True)
    fitted = _of(rows, TEMPERATURE, "temperature")
    known = fitted[np.isfinite(fitted["ci_high"])]
    band(top, fitted.where(fitted["layer"].isin(known["layer"])), PALETTE[2], "temperature")
    rest = fitted[~fitted["layer"].isin(known["layer"])]
    ends = rest["layer"], rest["value"].clip(*TEMPERATURES)
    top.plot(*ends, "x", color=GREY, ms=5, label="no temperature fits:\nat the end of those tried")
    top.axhline(1, color=INK, lw=0.8, ls="-.", label="1: calibrated in scale")
    top.set(yscale="log", ylabel="temperature", ylim=(min([0.4, *known["value"] / 2]), 150))
    ticks = [tick for tick in (0.01, 0.1, 1, 3, 10, 30, 100) if tick >= top.get_ylim()[0]]
    top.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    top.minorticks_off()
    for place, name in enumerate((NONE, TEMPERATURE, ISOTONIC)):
        label = {NONE: "as it is", TEMPERATURE: "after a temperature"}.get(name, f"after {name}")
        band(bottom, _of(rows, name, "ece"), label=label, **style.look((3, 2, 4)[place]))
    floor = _of(rows, TEMPERATURE, "ece")
    label = "null floor after a temperature"
    shade = {"color": GREY, "alpha": 0.35, "lw": 0, "label": label}
    bottom.fill_between(floor["layer"], 0, floor["null_high"], **shade)
    bottom.set(xlabel=DEPTH, ylabel="ECE", ylim=(0, None), xlim=(0, phase["final_layer"]))
    for axes in (top, bottom):
        mark_phase(axes, phase)
    name_marks(top, phase)
    for axes in (top, bottom):
        axes.legend(**BESIDE)
    return drawn


def plot_normalisations(rows: pd.DataFrame, phase: dict) -> Figure:
    """ECE and signed gap over the layers by definition of confidence.

    Parameters
    ----------
    rows : DataFrame
        From :func:`defined`.
    phase : dict
    """
    drawn = style.new(8.5, 5.6)
    panels = dict(zip(("ece", "signed_gap"), drawn.subplots(2, 1, sharex=True), strict=True))
    for metric, axes in panels.items():
        for place, (name, of_name) in enumerate(rows.groupby("confidence", sort=False)):
            band(
                axes, of_name[of_name["metric"] == metric], label=str(name), **style.look(3 * place)
            )
        mark_phase(axes, phase)
    panels["ece"].set(ylabel="ECE", ylim=(0, None), xlim=(0, phase["final_layer"]))
    panels["signed_gap"].axhline(0, color=INK, lw=0.7)
    panels["signed_gap"].set(ylabel="mean confidence\nless accuracy", xlabel=DEPTH)
    name_marks(panels["ece"], phase)
    panels["ece"].legend(title="confidence", **BESIDE)
    return drawn


def _of(rows: pd.DataFrame, recalibration: str, metric: str) -> pd.DataFrame:
    kept = rows["recalibration"].eq(recalibration) & rows["metric"].eq(metric)
    return rows[kept].sort_values("layer")
