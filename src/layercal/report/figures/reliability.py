"""Reliability diagrams."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layercal.metrics import readings
from layercal.report import style
from layercal.report.figures.registry import Drawing, figure
from layercal.report.style import GREY, MARKERS, PALETTE
from layercal.results import Results, primary_bins

MARKED = {"decision_layer": "decision", "peak_layer": "peak of ECE", "final_layer": "last"}


@figure("reliability", "Accuracy over confidence, at the marked layers and steered.")
def reliability(results: Results) -> Drawing:
    """Where the model is over- or underconfident."""
    rows = pd.concat([*_at_layers(results), *_steered(results)], ignore_index=True)
    gap = (rows["accuracy"] - rows["confidence"]).abs() * rows["n"]
    key = [rows["reading"], rows["state"]]
    errors = gap.groupby(key, sort=False).sum() / rows["n"].groupby(key, sort=False).sum()
    said = "; ".join(
        f"{' '.join(reading.split())}, {state}: {value:.2f}"
        for reading, state, value in errors.reset_index().itertuples(index=False)
    )
    alt = f"Reliability diagrams, accuracy over confidence by bin. ECE: {said}."
    return Drawing(plot_reliability(rows), rows, alt)


def _at_layers(results: Results) -> list[pd.DataFrame]:
    """Bins at decision layer, peak and last layer."""
    read = readings.from_options(results.options)[results.phase["order"]]
    names: dict[int, list[str]] = {}
    for key, label in MARKED.items():
        names.setdefault(results.phase[key], []).append(label)
    n_bins = primary_bins(results.metrics)
    return [
        readings.reliability(read.confidence[layer], read.correct[layer], n_bins).assign(
            reading=f"layer {layer}\n({', '.join(labels)})", state="as is"
        )
        for layer, labels in names.items()
    ]


def _steered(results: Results) -> list[pd.DataFrame]:
    """Bins of held-out questions in each mode, with the primary direction and without."""
    parts = []
    for mode, rows in results.reliability.groupby("mode", sort=False):
        state = rows["steered"].map({False: "as is", True: "steered"})
        where = "at the peak" if mode == "lens" else "layer chosen"
        parts.append(rows.drop(columns="steered").assign(reading=f"{mode}\n({where})", state=state))
    return parts


def plot_reliability(bins: pd.DataFrame) -> Figure:
    """Reliability diagrams: accuracy over confidence by bin, one panel a reading.

    Parameters
    ----------
    bins : DataFrame
        ``reading`` (the panel), and what :func:`plot_reliability_panel` shows.
    """
    panels = list(bins["reading"].unique())
    columns = 2 if len(panels) in (2, 4) else 3
    blocks = -(-len(panels) // columns)
    figure = style.new(3.4 * columns, 3.6 * blocks + 0.4)
    grid = figure.subplots(blocks, columns, sharex=True, sharey=True, squeeze=False)
    for axes, panel in zip(grid.flat[: len(panels)], panels, strict=True):
        plot_reliability_panel(bins[bins["reading"] == panel], axes)
        axes.set_title(panel, fontsize="small")
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[-1]:
        axes.set_xlabel("confidence (mean of bin)")
    for axes in grid.flat[max(len(panels) - columns, 0) : len(panels)]:
        axes.set_xlabel("confidence (mean of bin)")
        axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy, share in bin")
    style.shared_legend(figure, ncols=3)
    return figure


def plot_reliability_panel(bins: pd.DataFrame, axes: Axes | None = None) -> Axes:
    """One reliability diagram.

    Parameters
    ----------
    bins : DataFrame
        ``state`` (a line each) and the columns of :func:`layercal.metrics.readings.reliability`.
    axes : Axes, optional
        To draw on; those of a new figure if left out.
    """
    axes = style.panel(axes, 3.4, 3.6)
    states = list(bins["state"].unique())
    axes.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="perfectly calibrated")
    for index, state in enumerate(states):
        rows = bins[bins["state"] == state]
        color = (PALETTE[0], PALETTE[3])[state == "steered"]
        reach = rows["accuracy"] - rows["ci_low"], rows["ci_high"] - rows["accuracy"]
        axes.errorbar(
            rows["confidence"],
            rows["accuracy"],
            [side.clip(lower=0) for side in reach],
            color=color,
            marker=MARKERS[index],
            markersize=4,
            capsize=2,
            lw=1.2,
            label=state,
        )
        width = 0.09 / len(states)
        left = rows["bin"] - 0.095 + index * width
        share = rows["n"] / rows["n"].sum()
        axes.bar(left, share, width, align="edge", color=color, alpha=0.3, lw=0)
    axes.set(xlim=(0, 1), ylim=(0, 1))
    return axes
