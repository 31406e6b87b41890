"""Every figure, in one style. A figure function takes result tables and returns a Figure."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

INK, GREY = "#222222", "#9a9a9a"
PALETTE = sns.color_palette("colorblind")
ACCURACY, CONFIDENCE, ERROR = PALETTE[0], PALETTE[1], PALETTE[3]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
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


def dose_response(sweep: pd.DataFrame, mode: str, names: Sequence[str]) -> Figure:
    """ECE and accuracy over the scale, one column a layer, random directions as a grey band.

    Parameters
    ----------
    sweep : DataFrame
        ``sweep.parquet``.
    mode : {"lens", "through-network"}
    names : sequence of str
        Directions to draw; the first one with its interval.

    Returns
    -------
    Figure
    """
    theme()
    chosen = sweep[sweep["mode"] == mode]
    random = chosen["direction"].str.startswith("random-")
    drawn = chosen[chosen["direction"].isin(names)]
    layers = sorted(chosen["layer"].unique())
    blocks = -(-len(layers) // 5)
    columns = -(-len(layers) // blocks)
    figure = Figure(figsize=(max(2.3 * columns + 1.2, 6), 4.4 * blocks + 0.3), layout="constrained")
    axes = figure.subplots(2 * blocks, columns, sharex=True, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for place, layer in enumerate(layers):
        block, column = divmod(place, columns)
        for row, metric in enumerate(("ece", "accuracy")):
            axis = axes[2 * block + row, column]
            axis.set_visible(True)
            axis.tick_params(labelbottom=row == 1)
            here = (chosen["layer"] == layer) & (chosen["metric"] == metric)
            _random_band(axis, chosen[here & random])
            _dose_lines(axis, drawn[here[drawn.index]], names)
            highest = drawn.loc[drawn["metric"] == metric, ["value", "ci_high"]].max(axis=None)
            axis.set_ylim(0, highest * 1.02)
            if column == 0:
                axis.set_ylabel("ECE" if metric == "ece" else "accuracy")
            if row == 0:
                axis.set_title(f"steered at layer {layer}")
            else:
                axis.set_xlabel("scale alpha")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    return figure


def _random_band(axis, rows: pd.DataFrame) -> None:
    band = rows.groupby("alpha")["value"].agg(["min", "max", "mean"])
    label = f"{rows['direction'].nunique()} random directions: range"
    axis.fill_between(
        band.index, band["min"], band["max"], color=GREY, alpha=0.35, lw=0, label=label
    )
    axis.plot(band.index, band["mean"], color=GREY, lw=1.2, label="random directions: mean")
    axis.axvline(0, color=INK, lw=0.7)


def _dose_lines(axis, rows: pd.DataFrame, names: Sequence[str]) -> None:
    colors = [ERROR, *(color for color in PALETTE if color != ERROR)]
    for name, color, marker in zip(names, colors, MARKERS, strict=False):
        one = rows[rows["direction"] == name].sort_values("alpha")
        primary = name == names[0]
        axis.plot(
            one["alpha"],
            one["value"],
            color=color,
            marker=marker,
            markersize=4 if primary else 3,
            lw=2 if primary else 1.1,
            zorder=3 if primary else 2,
            label=name,
        )
        if primary:
            low, high = one["ci_low"], one["ci_high"]
            axis.fill_between(one["alpha"], low, high, color=color, alpha=0.18, lw=0)


def direction_cosines(directions: pd.DataFrame) -> Figure:
    """Mean cosine with the block update into every layer, of directions that are one for all.

    Parameters
    ----------
    directions : DataFrame
        ``directions.parquet``.

    Returns
    -------
    Figure
    """
    theme()
    layers = directions["layer"].nunique()
    everywhere = directions.groupby("name")["layer"].transform("nunique") == layers
    named = directions["name"].isin(["update-mean", "phase-mean", "middle-mean"])
    figure = Figure(figsize=(8.5, 3), layout="constrained")
    axis = figure.subplots()
    sns.lineplot(
        directions[everywhere & named],
        x="layer",
        y="cosine",
        hue="name",
        style="name",
        markers=True,
        dashes=False,
        errorbar=("pi", 100),
        ax=axis,
    )
    axis.axhline(0, color=INK, lw=0.7)
    axis.set(xlabel="block update into layer", ylabel="mean cosine with direction")
    axis.legend(title=None, loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
    return figure


def dimensions(table: pd.DataFrame) -> Figure:
    """ECE and accuracy once the part of the stream in the top r dimensions is the last layer's.

    Parameters
    ----------
    table : DataFrame
        ``dimensions.parquet``.

    Returns
    -------
    Figure
    """
    theme()
    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True)
    layers = sorted(table["layer"].unique())
    colors = sns.color_palette("crest", len(layers))
    for layer, color, marker in zip(layers, colors, MARKERS * len(layers), strict=False):
        one = table[table["layer"] == layer]
        left.plot(one["rank"], one["ece"], color=color, marker=marker, markersize=4)
        right.plot(
            one["rank"], one["accuracy"], color=color, marker=marker, markersize=4, label=layer
        )
    for axis, label in ((left, "ECE"), (right, "accuracy")):
        axis.set_xscale("symlog", base=2, linthresh=1)
        axis.set(xlabel="dimensions taken from the last layer", ylabel=label, ylim=(0, None))
        ticks = [rank for rank in sorted(table["rank"].unique()) if rank in (0, 1, 4, 16, 64, 256)]
        axis.set_xticks(ticks, labels=map(str, ticks))
        axis.minorticks_off()
    right.legend(title="layer", loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small")
    return figure


def transfer_matrix(rows: pd.DataFrame) -> Figure:
    """Relative ECE change of what was fitted on one group, scored on each; one panel a mode.

    Parameters
    ----------
    rows : DataFrame
        The ``transfer`` of ``summary.json``, at one layer a mode.

    Returns
    -------
    Figure
    """
    theme()
    modes = list(rows["mode"].unique())
    groups = list(rows["scored_on"].unique())
    figure = Figure(figsize=(4.4 * len(modes) + 0.6, 3.6), layout="constrained")
    axes = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for axis, mode in zip(axes, modes, strict=True):
        of_mode = rows[rows["mode"] == mode].assign(
            sure=lambda t: (t["ece_change_low"] > 0) | (t["ece_change_high"] < 0)
        )
        values, sure = (
            of_mode.pivot_table(name, "fitted_on", "scored_on", "first").loc[groups, groups]
            for name in ("ece_relative_change", "sure")
        )
        marked = values.map("{:+.0%}".format) + sure.map(lambda clear: "*" if clear else "")
        names = [group.partition(":")[2].replace(" ", "\n") for group in groups]
        sns.heatmap(
            values,
            annot=marked,
            fmt="",
            cmap="vlag",
            center=0,
            vmin=-1,
            vmax=1,
            xticklabels=names,
            yticklabels=names,
            cbar=axis is axes[-1],
            cbar_kws={"label": "relative change of ECE"},
            annot_kws={"size": "small"},
            ax=axis,
        )
        layer = of_mode["layer"].iloc[0]
        axis.set(title=f"{mode}, layer {layer}", xlabel="scored on", ylabel="")
        axis.tick_params(labelsize="small", length=0, axis="both", rotation=0)
    axes[0].set_ylabel("fitted on")
    return figure


def null_space(table: pd.DataFrame) -> Figure:
    """Share of the stream and of block updates in the null space, over the layers.

    Parameters
    ----------
    table : DataFrame
        ``nullspace.parquet``.

    Returns
    -------
    Figure
    """
    theme()
    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    for axis, what in zip(axes, ("residual", "update"), strict=True):
        for (rule, one), color, marker in zip(
            table[table["what"] == what].groupby("rule", sort=False), PALETTE, MARKERS, strict=False
        ):
            label = f"{rule} ({one['size'].iloc[0]} of d)"
            axis.plot(
                one["layer"], one["share"], color=color, marker=marker, markersize=3.5, label=label
            )
            axis.axhline(one["chance"].iloc[0], color=color, ls="--", lw=1)
        axis.set(xlabel="layer", ylim=(0, None))
    axes[0].set(ylabel="share of squared norm", title="residual stream")
    axes[1].set(title="block update")
    axes[1].legend(
        title="null space", loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small"
    )
    return figure


def ablations(table: pd.DataFrame) -> Figure:
    """Change of ECE and accuracy at the last layer without each part of each block.

    Parameters
    ----------
    table : DataFrame
        The ``attribution`` of ``summary.json``.

    Returns
    -------
    Figure
    """
    theme()
    part, block = table["without"].str.split(" ", expand=True).to_numpy().T
    table = table.assign(part=part, block=block.astype(int))
    figure = Figure(figsize=(8.5, 3.2), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True)
    for axis, metric in zip(axes, ("ece", "accuracy"), strict=True):
        for shift, (name, one), color, marker in zip(
            (-0.12, 0.12), table.groupby("part"), PALETTE, MARKERS, strict=False
        ):
            change = one[f"{metric}_change"]
            low, high = (one[f"{metric}_change_{end}"] for end in ("low", "high"))
            axis.errorbar(
                one["block"] + shift,
                change,
                [(change - low).clip(lower=0), (high - change).clip(lower=0)],
                fmt=marker,
                color=color,
                capsize=2.5,
                label=name,
            )
        axis.axhline(0, color=INK, lw=0.7)
        axis.set(xlabel="block", ylabel=f"change of {'ECE' if metric == 'ece' else metric}")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[1].legend(
        title="without its", loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="small"
    )
    return figure
