"""Every figure, in one style. A figure function takes result tables and returns a Figure."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

INK, GREY = "#222222", "#9a9a9a"
PALETTE = sns.color_palette("colorblind")
ACCURACY, CONFIDENCE, ERROR = PALETTE[0], PALETTE[1], PALETTE[3]
DECISION, PEAK = {"ls": "--", "lw": 1.2}, {"ls": ":", "lw": 1.6}


def theme() -> None:
    """Set the one theme of all figures."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        palette="colorblind",
        rc={
            "figure.dpi": 110,
            "savefig.dpi": 160,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.titlelocation": "left",
            "axes.labelcolor": INK,
            "text.color": INK,
            "legend.frameon": False,
            "pdf.fonttype": 42,
        },
    )
    mpl.rcParams["svg.hashsalt"] = "layercal"


def _pick(
    metrics: pd.DataFrame, metric: str, group: str = "all", lens: str = "logit"
) -> pd.DataFrame:
    """Rows of one metric at its primary number of bins and option order, by layer."""
    rows = metrics[(metrics["metric"] == metric) & (metrics["group"] == group)]
    rows = rows[(rows["lens"] == lens) & (rows["order"] == rows["order"].iloc[0])]
    return rows[rows["n_bins"] == rows["n_bins"].iloc[0]].sort_values("layer")


def _band(axis, rows: pd.DataFrame, color, label: str) -> None:
    axis.plot(rows["layer"], rows["value"], color=color, label=label, marker="o", markersize=3.5)
    axis.fill_between(rows["layer"], rows["ci_low"], rows["ci_high"], color=color, alpha=0.18, lw=0)


def _mark_phase(axis, phase: dict) -> None:
    """Mark decision and peak layer, and shade the correction phase if there is one."""
    if phase["exists"]:
        axis.axvspan(phase["peak_layer"], phase["final_layer"], color=PALETTE[4], alpha=0.14, lw=0)
    axis.axvline(phase["decision_layer"], color=GREY, **DECISION)
    if phase["peak_layer"] != phase["decision_layer"]:
        axis.axvline(phase["peak_layer"], color=GREY, **PEAK)


def layer_curves(metrics: pd.DataFrame, phase: dict, title: str = "") -> Figure:
    """Accuracy, confidence and ECE over the layers, with intervals, chance and null floor.

    Parameters
    ----------
    metrics : DataFrame
        ``metrics.parquet``.
    phase : dict
        ``phase.json``.
    title : str

    Returns
    -------
    Figure
    """
    theme()
    figure = Figure(figsize=(8.5, 6.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    errors = _pick(metrics, "ece")
    n, bins = errors["n"].iloc[0], errors["n_bins"].iloc[0]
    _band(top, _pick(metrics, "confidence"), CONFIDENCE, "mean confidence")
    _band(top, _pick(metrics, "accuracy"), ACCURACY, "accuracy")
    top.axhline(phase["chance"], color=GREY, lw=1, label="chance")
    top.set(ylabel="share of questions, probability", ylim=(0, 1))
    _band(bottom, errors, ERROR, "ECE")
    bottom.fill_between(
        errors["layer"],
        0,
        errors["null_high"],
        color=GREY,
        alpha=0.35,
        lw=0,
        label="null floor: up to the 95th percentile\nof a perfectly calibrated model",
    )
    bottom.set(ylabel=f"ECE ({bins} bins)", xlabel="layer (0: embedding)", ylim=(0, None))
    bottom.set_xlim(0, phase["final_layer"])
    for axis in (top, bottom):
        _mark_phase(axis, phase)
    apart = phase["peak_layer"] != phase["decision_layer"]
    label = "decision layer" if apart else "decision layer and peak of ECE"
    top.plot([], [], color=GREY, **DECISION, label=label)
    if apart:
        top.plot([], [], color=GREY, **PEAK, label="peak of ECE")
    if phase["exists"]:
        top.fill_between([], [], color=PALETTE[4], alpha=0.14, label="correction phase")
    for axis in (top, bottom):
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
    top.set_title(f"{title}  (n = {n}; bands: 95 % CI over questions)".strip())
    return figure


def measured(metrics: pd.DataFrame, kind: str) -> list[str]:
    """Groups of a kind, such as ``category``, that hold enough questions to be measured."""
    groups = set(metrics.loc[metrics["value"].notna(), "group"])
    return sorted(group for group in groups if group.startswith(f"{kind}:"))


def group_curves(metrics: pd.DataFrame, kind: str) -> Figure:
    """Accuracy and ECE over the layers, one column a group that was :func:`measured`.

    Parameters
    ----------
    metrics : DataFrame
        ``metrics.parquet``.
    kind : str
        Of the groups, such as ``category`` or ``language``.

    Returns
    -------
    Figure
    """
    theme()
    groups = measured(metrics, kind)
    columns = max(min(len(groups), 4), 2)
    blocks = -(-len(groups) // columns)
    figure = Figure(figsize=(2.8 * columns, 4.6 * blocks), layout="constrained")
    parts = figure.subfigures(blocks, 1, squeeze=False)[:, 0]
    highest = metrics.loc[metrics["group"].isin(groups) & (metrics["metric"] == "ece"), "ci_high"]
    for block, part in enumerate(parts):
        axes = part.subplots(2, columns, sharex=True, sharey="row")
        axes[0, 0].set(ylabel="accuracy", ylim=(0, 1))
        axes[1, 0].set(ylabel="ECE", ylim=(0, highest.max()))
        inside = groups[block * columns : (block + 1) * columns]
        for column, group in zip(axes.T, inside, strict=False):
            _group_panel(column, metrics, group)
        for axis in axes[:, len(inside) :].flat:
            axis.set_visible(False)
    return figure


def _group_panel(axes, metrics: pd.DataFrame, group: str) -> None:
    (top, bottom), errors = axes, _pick(metrics, "ece", group)
    _band(top, _pick(metrics, "accuracy", group), ACCURACY, "accuracy")
    top.axhline(_pick(metrics, "chance", group)["value"].iloc[-1], color=GREY, lw=1)
    _band(bottom, errors, ERROR, "ECE")
    bottom.fill_between(errors["layer"], 0, errors["null_high"], color=GREY, alpha=0.35, lw=0)
    top.set_title(f"{group.partition(':')[2]}, n = {errors['n'].iloc[0]}")
    bottom.set_xlabel("layer")


def dose_response(sweep: pd.DataFrame, mode: str) -> Figure:
    """ECE and accuracy over the scale, one column a layer, random directions as a grey band.

    Parameters
    ----------
    sweep : DataFrame
        ``sweep.parquet``.
    mode : {"lens", "through-network"}

    Returns
    -------
    Figure
    """
    theme()
    chosen = sweep[sweep["mode"] == mode]
    layers = sorted(chosen["layer"].unique())
    blocks = -(-len(layers) // 5)
    columns = -(-len(layers) // blocks)
    figure = Figure(figsize=(2.3 * columns + 1.2, 4.4 * blocks), layout="constrained")
    axes = figure.subplots(2 * blocks, columns, sharex=True, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for place, layer in enumerate(layers):
        block, column = divmod(place, columns)
        for row, metric in enumerate(("ece", "accuracy")):
            axis = axes[2 * block + row, column]
            axis.set_visible(True)
            axis.tick_params(labelbottom=row == 1)
            of_metric = chosen[(chosen["layer"] == layer) & (chosen["metric"] == metric)]
            _dose_panel(axis, of_metric, ERROR if metric == "ece" else ACCURACY)
            axis.set_ylim(0, chosen.loc[chosen["metric"] == metric, "ci_high"].max() * 1.02)
            if column == 0:
                axis.set_ylabel("ECE" if metric == "ece" else "accuracy")
            if row == 0:
                axis.set_title(f"steered at layer {layer}")
            else:
                axis.set_xlabel("scale alpha")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    return figure


def _dose_panel(axis, rows: pd.DataFrame, color) -> None:
    random = rows[rows["direction"].str.startswith("random-")].groupby("alpha")["value"]
    band = random.agg(["min", "max", "mean"])
    axis.fill_between(
        band.index,
        band["min"],
        band["max"],
        color=GREY,
        alpha=0.35,
        lw=0,
        label=f"{len(rows['direction'].unique()) - 1} random directions: range",
    )
    axis.plot(band.index, band["mean"], color=GREY, lw=1.2, label="random directions: mean")
    fitted = rows[~rows["direction"].str.startswith("random-")]
    for name, one in fitted.groupby("direction"):
        one = one.sort_values("alpha")
        axis.plot(one["alpha"], one["value"], color=color, marker="o", markersize=3.5, label=name)
        axis.fill_between(
            one["alpha"], one["ci_low"], one["ci_high"], color=color, alpha=0.18, lw=0
        )
    axis.axvline(0, color=INK, lw=0.7)


def direction_cosines(directions: pd.DataFrame) -> Figure:
    """Mean cosine of each fitted direction with the block update into every layer.

    Parameters
    ----------
    directions : DataFrame
        ``directions.parquet``.

    Returns
    -------
    Figure
    """
    theme()
    figure = Figure(figsize=(8.5, 3), layout="constrained")
    axis = figure.subplots()
    sns.lineplot(
        directions, x="layer", y="cosine", hue="name", errorbar=("pi", 100), marker="o", ax=axis
    )
    axis.axhline(0, color=INK, lw=0.7)
    axis.set(xlabel="block update into layer", ylabel="mean cosine with direction")
    axis.legend(title=None)
    return figure
