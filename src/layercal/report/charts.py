"""Charts of the interactive page, as Vega-Lite made by Altair, in the style of the figures.

Each reads named data sets, which the page fills, and is as wide as its place.
"""

from __future__ import annotations

from typing import Any

import altair as alt

from layercal.report.style import INK, PALETTE

COLORS = PALETTE.as_hex()
ACCURACY, CONFIDENCE, ERROR = COLORS[0], COLORS[1], COLORS[3]
OPTIONS = [*COLORS[:3], COLORS[4], COLORS[3], *COLORS[5:]]  # two oranges apart
PALE = "#bdbdbd"
APART: dict[str, Any] = {"xOffset": 1, "x2Offset": -1}
UNIT = alt.Scale(domain=[0, 1], nice=False)
BIN = alt.X("low:Q", title="confidence", scale=UNIT, axis=alt.Axis(tickCount=5))
LAYER = alt.X("layer:Q", title="layer (0: embedding)", axis=alt.Axis(tickMinStep=1, grid=False))
Chart = alt.LayerChart | alt.FacetChart  # what alt.layer gives


def specs() -> dict[str, dict]:
    """Vega-Lite specification of every chart, by the id of its place on the page."""
    drawn = (curves, reliability, histogram, flow, trajectory)
    return {draw.__name__: _dress(draw(), draw.__doc__ or "").to_dict() for draw in drawn}


def _dress(chart: Chart, description: str) -> Chart:
    """Give a chart the style of all, and a description that screen readers say."""
    text = {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 13}
    symbol = {"symbolOpacity": 1, "symbolStrokeWidth": 3}
    fit = alt.AutoSizeParams(type="fit", contains="padding")
    return (
        chart.properties(width="container", height=300, autosize=fit, description=description)
        .configure(font="system-ui, sans-serif", background="white")
        .configure_axis(**text, titleFontWeight="normal", gridColor="#e6e6e6", domainColor=INK)
        .configure_legend(**text, orient="bottom", columns=2, title=None, labelLimit=0, **symbol)
        .configure_view(stroke=None)
    )


def _data(name: str) -> alt.Chart:
    return alt.Chart(alt.NamedData(name=name))


def _colors(names: dict[str, str]) -> alt.Color:
    scale = alt.Scale(domain=list(names), range=list(names.values()))
    return alt.Color("kind:N", scale=scale, legend=alt.Legend())


def _numbers(*names: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{name}:Q", format=".3f") for name in names]


def _now() -> alt.Chart:
    """Rule at the layer of the slider."""
    return _data("now").mark_rule(color=INK, strokeDash=[4, 3]).encode(x=LAYER)


def curves() -> Chart:
    """Accuracy, confidence and ECE over the layers, with intervals and null floor."""
    kinds = {"accuracy": ACCURACY, "mean confidence": CONFIDENCE, "ECE": ERROR}
    color = _colors({**kinds, "null floor of ECE": PALE})
    series = _data("series").encode(x=LAYER, color=color)
    lines = series.mark_line(point=alt.OverlayMarkDef(size=22)).encode(
        y=alt.Y("value:Q", title="share, probability, error", scale=UNIT),
        tooltip=["kind:N", "layer:Q", *_numbers("value", "low", "high")],
    )
    band = series.mark_area(opacity=0.18).encode(y="low:Q", y2="high:Q")
    floor = _data("floor").mark_area(opacity=0.55).encode(x=LAYER, y="high:Q", color=color)
    return alt.layer(floor, band, lines, _now())


def reliability() -> Chart:
    """Accuracy of each confidence bin, and how far its mean confidence is off."""
    color = _colors({"accuracy of the bin": ACCURACY, "gap to mean confidence": ERROR})
    accuracy = alt.Y("accuracy:Q", title="accuracy", scale=UNIT)
    bins = _data("bins").encode(
        tooltip=["count:Q", *_numbers("confidence", "accuracy"), alt.Tooltip("range:N")]
    )
    bars = bins.transform_calculate(kind="'accuracy of the bin'").mark_rect(**APART)
    bars = bars.encode(x=BIN, x2="high:Q", y=accuracy, y2=alt.datum(0), color=color)
    gaps = bins.transform_calculate(kind="'gap to mean confidence'").mark_bar(width=7)
    gaps = gaps.encode(x="middle:Q", y=accuracy, y2="confidence:Q", color=color)
    counts = bins.mark_text(dy=-8, fontSize=12, color=INK)
    counts = counts.encode(x="middle:Q", y=alt.Y("top:Q"), text="count:Q")
    ends = alt.InlineData(values=[{"low": 0, "accuracy": 0}, {"low": 1, "accuracy": 1}])
    perfect = alt.Chart(ends).mark_line(color=INK, strokeDash=[5, 4], strokeWidth=1.2)
    return alt.layer(bars, perfect.encode(x=BIN, y=accuracy), gaps, counts)


def histogram() -> Chart:
    """How many questions each confidence bin holds; mean confidence and accuracy."""
    color = _colors({"mean confidence": CONFIDENCE, "accuracy": ACCURACY})
    bars = _data("bins").mark_rect(**APART, color=PALE)
    bars = bars.encode(
        x=BIN,
        x2="high:Q",
        y=alt.Y("count:Q", title="questions"),
        y2=alt.datum(0),
        tooltip=["count:Q", alt.Tooltip("range:N")],
    )
    means = _data("means").mark_rule(strokeWidth=3).encode(x="value:Q", color=color)
    return alt.layer(bars, means.encode(tooltip=["kind:N", *_numbers("value")]))


def flow() -> Chart:
    """Questions by the option chosen before and after; those that kept theirs are pale."""
    cells = _data("flow").encode(
        x=alt.X("to:N", title="chosen now", axis=alt.Axis(labelAngle=0, domain=False, ticks=False)),
        y=alt.Y("from:N", title="chosen before", axis=alt.Axis(domain=False, ticks=False)),
        tooltip=["from:N", "to:N", "count:Q"],
    )
    # dark text can be read on all of it
    scale = alt.Scale(domain=[0, 1], range=["#ffffff", "#f2a15f"], interpolate="rgb")
    strength = alt.Color("share:Q", scale=scale, legend=None)
    color = alt.condition("datum.from === datum.to", alt.value("#eeeeee"), strength)
    squares = cells.mark_rect(stroke="white", strokeWidth=2, cursor="pointer").encode(color=color)
    numbers = cells.mark_text(fontSize=13, cursor="pointer", color=INK).encode(text="count:Q")
    return alt.layer(squares, numbers)


def trajectory() -> Chart:
    """Probability of each option of one question over the layers, the right answer bold."""
    scale = alt.Scale(range=OPTIONS)
    color = alt.Color("option:N", scale=scale, legend=alt.Legend(columns=5))
    lines = _data("trajectory").encode(
        x=LAYER,
        y=alt.Y("probability:Q", title="probability", scale=UNIT),
        color=color,
        tooltip=["option:N", "layer:Q", *_numbers("probability")],
    )
    width = alt.condition("datum.right", alt.value(4), alt.value(1.6))
    dash = alt.condition("datum.right", alt.value([1, 0]), alt.value([5, 3]))
    return alt.layer(lines.mark_line().encode(strokeWidth=width, strokeDash=dash), _now())
