"""Curves and heat maps by category, subject and language."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layercal.metrics import readings
from layercal.report import style
from layercal.report.figures.curves import COLUMNS, DEPTH, band, floor, of
from layercal.report.figures.registry import Drawing, figure
from layercal.report.style import ACCURACY, DECISION, ERROR, GREY, INK, PEAK
from layercal.results import Results, select

MAPS: dict[str, dict[str, Any]] = {
    "accuracy": {"cmap": "viridis", "vmin": 0, "vmax": 1, "label": "accuracy"},
    "ece": {"cmap": "rocket_r", "vmin": 0, "label": "ECE"},
    "signed_gap": {
        "cmap": "vlag",
        "vmin": -1,
        "vmax": 1,
        "label": "mean confidence minus accuracy",
    },
}


@figure("groups", "Accuracy and ECE over the layers, by category.")
def categories(results: Results) -> Drawing | str:
    """Whether it is so in each category."""
    return _group_curves(results, "category")


@figure("groups", "The same as heat maps, layer by category.")
def category_map(results: Results) -> Drawing | str:
    """The curves by category, side by side."""
    groups = measured(results.metrics, "category")
    if not groups:
        return "No category holds enough questions to be measured."
    rows = select(results.metrics, ["accuracy", "ece"], groups)[COLUMNS]
    worst = rows[rows["metric"] == "ece"].nlargest(1, "value").iloc[0]
    alt = (
        "Heat maps of accuracy and ECE, layer by category. ECE is largest for "
        f"{worst['group'].partition(':')[2]} at layer {worst['layer']}, {worst['value']:.2f}."
    )
    return Drawing(plot_group_map(rows, results.phase), rows, alt)


@figure("groups", "Accuracy and ECE over the layers, by language.")
def languages(results: Results) -> Drawing | str:
    """Whether it is so in each language."""
    if len(set(results.prompts["language"])) == 1:
        return "All questions are in one language."
    return _group_curves(results, "language")


@figure("groups", "Accuracy and signed gap, layer by subject; red is overconfident.")
def subject_map(results: Results) -> Drawing | str:
    """Accuracy and signed gap: means, which few questions make noisy but, unlike ECE, not large."""
    asked = results.prompts.drop_duplicates("question_id")
    if len(set(asked["subject"])) == 1:
        return "All questions are of one subject."
    read = readings.from_options(results.options)[results.phase["order"]]
    values = {"accuracy": read.correct.T * 1.0, "signed_gap": (read.confidence - read.correct).T}
    subjects = asked["subject"].to_numpy()
    counts = asked["subject"].value_counts()
    ordered = asked.sort_values(["category", "subject"])["subject"].unique()
    tables = [
        pd.DataFrame(value)
        .groupby(subjects)
        .mean()
        .loc[ordered]
        .rename_axis("group")
        .reset_index()
        .melt("group", var_name="layer")
        .assign(metric=metric)
        for metric, value in values.items()
    ]
    rows = pd.concat(tables, ignore_index=True)
    rows["n"] = rows["group"].map(counts)
    rows["group"] = "subject:" + rows["group"]
    alt = (
        f"Heat maps of accuracy and of mean confidence minus accuracy, layer by subject: "
        f"{len(ordered)} subjects of {counts.min()} to {counts.max()} questions each."
    )
    rows = rows[["group", "n", "layer", "metric", "value"]]
    return Drawing(plot_group_map(rows, results.phase), rows, alt)


def measured(metrics: pd.DataFrame, kind: str) -> list[str]:
    """Groups of a kind, such as ``category``, that hold enough questions to be measured."""
    rows = metrics["value"].notna() & metrics["group_kind"].eq(kind)
    return sorted(set(metrics.loc[rows, "group"]))


def _group_curves(results: Results, kind: str) -> Drawing | str:
    groups = measured(results.metrics, kind)
    if not groups:
        return f"No {kind} holds enough questions to be measured."
    rows = select(results.metrics, ["accuracy", "chance", "ece"], groups)[COLUMNS]
    last = of(rows[rows["layer"] == results.phase["final_layer"]], "ece")
    named = zip(last["group"], last["value"], strict=True)
    said = ", ".join(f"{group.partition(':')[2]} {value:.2f}" for group, value in named)
    alt = f"Accuracy and ECE over the layers, by {kind}. ECE at the last layer: {said}."
    return Drawing(plot_group_curves(rows), rows, alt)


def plot_group_curves(rows: pd.DataFrame) -> Figure:
    """Accuracy and ECE over the layers, one column a group.

    Parameters
    ----------
    rows : DataFrame
        Of ``metrics.parquet``: accuracy, chance and ECE of the groups.
    """
    groups = sorted(rows["group"].unique())
    columns = max(min(len(groups), 4), 2)
    blocks = -(-len(groups) // columns)
    figure = style.new(2.8 * columns, 4.6 * blocks)
    parts = figure.subfigures(blocks, 1, squeeze=False)[:, 0]
    highest = rows.loc[rows["metric"] == "ece", "ci_high"].max()
    for block, part in enumerate(parts):
        axes = part.subplots(2, columns, sharex=True, sharey="row")
        axes[0, 0].set(ylabel="accuracy", ylim=(0, 1))
        axes[1, 0].set(ylabel="ECE", ylim=(0, highest))
        inside = groups[block * columns : (block + 1) * columns]
        for column, group in zip(axes.T[: len(inside)], inside, strict=True):
            _group_panel(column, rows[rows["group"] == group], group)
        for axis in axes[:, len(inside) :].flat:
            axis.set_visible(False)
    return figure


def _group_panel(axes: Sequence[Axes], rows: pd.DataFrame, group: str) -> None:
    (top, bottom), errors = axes, of(rows, "ece")
    band(top, of(rows, "accuracy"), ACCURACY, "accuracy")
    top.axhline(of(rows, "chance")["value"].iloc[-1], color=GREY, lw=1)
    band(bottom, errors, ERROR, "ECE")
    floor(bottom, errors)
    top.set_title(f"{group.partition(':')[2]}, n = {errors['n'].iloc[0]}")
    bottom.set_xlabel("layer")


def plot_group_map(values: pd.DataFrame, phase: dict) -> Figure:
    """Heat maps layer x group, one panel a metric.

    Parameters
    ----------
    values : DataFrame
        ``group``, ``n``, ``layer``, ``metric`` (of ``MAPS``) and ``value``, groups in the order in
        which they are drawn.
    phase : dict
        ``phase.json``.
    """
    counts = values.groupby("group", sort=False)["n"].first()
    names = {
        group: f"{group.partition(':')[2].replace('_', ' ')}, n = {n}"
        for group, n in zip(counts.index, counts, strict=True)
    }
    metrics = list(values["metric"].unique())
    figure = style.new(10, 0.2 * len(names) + 1.7)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        shades = dict(MAPS[metric])
        label = shades.pop("label")
        grid = values[values["metric"] == metric].pivot_table("value", "group", "layer")
        sns.heatmap(
            grid.loc[list(names)],
            ax=axes,
            cbar_kws={"label": label, "location": "top", "shrink": 0.9},
            yticklabels=list(names.values()),
            **shades,
        )
        axes.set_xticks([at + 0.5 for at in range(0, grid.shape[1], 4)])
        axes.set_xticklabels(range(0, grid.shape[1], 4), rotation=0)
        axes.tick_params(labelsize="small", length=2)
        axes.set(xlabel=DEPTH, ylabel="")
        marks = {phase["peak_layer"]: PEAK, phase["decision_layer"]: DECISION}
        for layer, mark in marks.items():
            axes.axvline(layer + 0.5, color=INK, **mark)
    figure.axes[0].set_ylabel(next(iter(names)).partition(":")[0])
    return figure
