"""Every figure, in one style. A figure function takes result tables and returns a Figure."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import networkx
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from layercal.results import select

INK, GREY = "#222222", "#9a9a9a"
PALETTE = sns.color_palette("colorblind")
ACCURACY, CONFIDENCE, ERROR = PALETTE[0], PALETTE[1], PALETTE[3]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]


def look(place: int) -> dict:
    """Colour and marker of one of several lines; no two of the first 40 are alike."""
    return {"color": PALETTE[place % len(PALETTE)], "marker": MARKERS[place % len(MARKERS)]}


DECISION, PEAK = {"ls": "--", "lw": 1.2}, {"ls": ":", "lw": 1.6}
# a legend to the right of its axis
BESIDE = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "fontsize": "small"}


def theme() -> None:
    """Set the one theme of all figures, which nothing in a user's matplotlibrc changes."""
    mpl.rcdefaults()
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
            "font.sans-serif": ["DejaVu Sans"],  # the one that comes with Matplotlib
            "pdf.fonttype": 42,
        },
    )
    mpl.rcParams["svg.hashsalt"] = "layercal"


def _pick(
    metrics: pd.DataFrame, metric: str, group: str = "all", lens: str = "logit"
) -> pd.DataFrame:
    """Rows of one metric at its primary number of bins and option order, by layer."""
    return select(metrics, metric, group, lens).sort_values("layer")


def _band(axis, rows: pd.DataFrame, color, label: str, marker: str = "o") -> None:
    axis.plot(rows["layer"], rows["value"], color=color, label=label, marker=marker, markersize=3.5)
    axis.fill_between(rows["layer"], rows["ci_low"], rows["ci_high"], color=color, alpha=0.18, lw=0)


def _counted(rows: pd.DataFrame) -> str:
    return f"(n = {rows['n'].iloc[0]}; bands: 95 % CI over questions)"


FLOOR = "null floor: up to the 95th percentile\nof a perfectly calibrated model"


def _floor(axis, rows: pd.DataFrame, label: str | None = FLOOR) -> None:
    """Shade what a perfectly calibrated model would show, for errors that have such a floor."""
    if rows["null_high"].notna().any():
        axis.fill_between(
            rows["layer"], 0, rows["null_high"], color=GREY, alpha=0.35, lw=0, label=label
        )


def _mark_phase(axis, phase: dict) -> None:
    """Mark decision and peak layer, and shade the correction phase if there is one."""
    if phase["exists"]:
        axis.axvspan(phase["peak_layer"], phase["final_layer"], color=PALETTE[4], alpha=0.14, lw=0)
    axis.axvline(phase["decision_layer"], color=GREY, **DECISION)
    if phase["peak_layer"] != phase["decision_layer"]:
        axis.axvline(phase["peak_layer"], color=GREY, **PEAK)


def _name_marks(axis, phase: dict) -> None:
    """Name in the legend what :func:`_mark_phase` draws."""
    apart = phase["peak_layer"] != phase["decision_layer"]
    label = "decision layer" if apart else "decision layer and peak of ECE"
    axis.plot([], [], color=GREY, **DECISION, label=label)
    if apart:
        axis.plot([], [], color=GREY, **PEAK, label="peak of ECE")
    if phase["exists"]:
        axis.fill_between([], [], color=PALETTE[4], alpha=0.14, label="correction phase")


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
    bins = errors["n_bins"].iloc[0]
    _band(top, _pick(metrics, "confidence"), CONFIDENCE, "mean confidence")
    _band(top, _pick(metrics, "accuracy"), ACCURACY, "accuracy")
    top.axhline(phase["chance"], color=GREY, lw=1, label="chance")
    top.set(ylabel="share of questions, probability", ylim=(0, 1))
    _band(bottom, errors, ERROR, "ECE")
    _floor(bottom, errors)
    bottom.set(ylabel=f"ECE ({bins} bins)", xlabel="layer (0: embedding)", ylim=(0, None))
    bottom.set_xlim(0, phase["final_layer"])
    for axis in (top, bottom):
        _mark_phase(axis, phase)
    _name_marks(top, phase)
    for axis in (top, bottom):
        axis.legend(**BESIDE)
    top.set_title(f"{title}  {_counted(errors)}".strip())
    return figure


def depth_curves(metrics: pd.DataFrame, phase: dict) -> Figure:
    """MCE, option mass and entropy over the layers, with intervals.

    Parameters
    ----------
    metrics : DataFrame
        ``metrics.parquet``.
    phase : dict
        ``phase.json``.

    Returns
    -------
    Figure
    """
    theme()
    figure = Figure(figsize=(8.5, 7.4), layout="constrained")
    panels = {
        "mce": ("MCE ({bins} bins)", ERROR),
        "option_mass": ("option mass\n(probability)", PALETTE[2]),
        "entropy": ("entropy over the\nvocabulary (nats)", PALETTE[4]),
    }
    for axis, (metric, (label, color)) in zip(
        figure.subplots(3, 1, sharex=True), panels.items(), strict=True
    ):
        rows = _pick(metrics, metric)
        _band(axis, rows, color, metric.replace("_", " ").replace("mce", "MCE"))
        _floor(axis, rows)
        axis.set(ylabel=label.format(bins=rows["n_bins"].iloc[0]), ylim=(0, None))
        _mark_phase(axis, phase)
        axis.set_xlim(0, phase["final_layer"])
    axis.set_xlabel("layer (0: embedding)")
    first = figure.axes[0]
    _name_marks(first, phase)
    first.set_title(_counted(_pick(metrics, "mce")))
    first.legend(**BESIDE)
    return figure


def lenses(metrics: pd.DataFrame, phase: dict) -> Figure:
    """Accuracy and ECE over the layers, through the logit lens and through the tuned lens.

    Parameters
    ----------
    metrics : DataFrame
        ``metrics.parquet``.
    phase : dict
        ``phase.json``.

    Returns
    -------
    Figure
    """
    theme()
    figure = Figure(figsize=(8.5, 5.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    for lens, color in (("logit", PALETTE[0]), ("tuned", PALETTE[1])):
        for axis, metric in ((top, "accuracy"), (bottom, "ece")):
            _band(axis, _pick(metrics, metric, lens=lens), color, f"{lens} lens")
        found = phase if lens == "logit" else phase["tuned"]
        for axis in (top, bottom):
            axis.axvline(found["decision_layer"], color=color, **DECISION)
    _floor(bottom, _pick(metrics, "ece", lens="tuned"))
    top.axhline(phase["chance"], color=GREY, lw=1, label="chance")
    top.plot([], [], color=GREY, **DECISION, label="decision layer")
    errors = _pick(metrics, "ece")
    top.set_title(_counted(errors))
    top.set(ylabel="accuracy", ylim=(0, 1))
    bottom.set(ylabel=f"ECE ({errors['n_bins'].iloc[0]} bins)", xlabel="layer (0: embedding)")
    bottom.set_ylim(0, None)
    bottom.set_xlim(0, phase["final_layer"])
    top.legend(**BESIDE)
    handles, labels = bottom.get_legend_handles_labels()
    bottom.legend(handles[2:], labels[2:], **BESIDE)
    return figure


def letters(metrics: pd.DataFrame, phase: dict, answers: pd.Series) -> Figure:
    """Share of the predictions that name each option letter, over the layers.

    Parameters
    ----------
    metrics : DataFrame
        Rows of ``metrics.parquet`` in one order of the options.
    phase : dict
        ``phase.json``.
    answers : Series
        Letter -> share of the right answers.

    Returns
    -------
    Figure
    """
    theme()
    figure = Figure(figsize=(8.5, 3.6), layout="constrained")
    axis = figure.subplots()
    for place, (letter, share) in enumerate(answers.items()):
        rows = metrics[metrics["metric"] == f"predicted_{letter}"].sort_values("layer")
        _band(axis, rows, label=f"{letter} (right answer in {share:.0%})", **look(place))
    _mark_phase(axis, phase)
    axis.set(xlabel="layer (0: embedding)", ylabel="share of predictions", ylim=(0, 1))
    axis.set_xlim(0, phase["final_layer"])
    axis.legend(title="option letter", loc="center left", bbox_to_anchor=(1.01, 0.5))
    axis.set_title(_counted(rows))
    return figure


MAPS = {
    "accuracy": {"cmap": "viridis", "vmin": 0, "vmax": 1, "label": "accuracy"},
    "ece": {"cmap": "rocket_r", "vmin": 0, "label": "ECE"},
    "signed_gap": {
        "cmap": "vlag",
        "vmin": -1,
        "vmax": 1,
        "label": "mean confidence minus accuracy",
    },
}


def group_map(values: pd.DataFrame, phase: dict) -> Figure:
    """Heat maps layer x group, one panel a metric.

    Parameters
    ----------
    values : DataFrame
        ``group``, ``n``, ``layer``, ``metric`` (of ``MAPS``) and ``value``, groups in the order in
        which they are drawn.
    phase : dict
        ``phase.json``.

    Returns
    -------
    Figure
    """
    theme()
    names = {
        group: f"{group.partition(':')[2].replace('_', ' ')}, n = {n}"
        for group, n in values.groupby("group", sort=False)["n"].first().items()
    }
    chosen = list(values["metric"].unique())
    height = 0.2 * len(names) + 1.7
    figure = Figure(figsize=(10, height), layout="constrained")
    for axis, metric in zip(
        figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0], chosen, strict=True
    ):
        shades = dict(MAPS[metric])
        label = shades.pop("label")
        one = values[values["metric"] == metric].pivot_table("value", "group", "layer")
        sns.heatmap(
            one.loc[list(names)],
            ax=axis,
            cbar_kws={"label": label, "location": "top", "shrink": 0.9},
            yticklabels=list(names.values()),
            **shades,
        )
        axis.set_xticks([at + 0.5 for at in range(0, one.shape[1], 4)])
        axis.set_xticklabels(range(0, one.shape[1], 4), rotation=0)
        axis.tick_params(labelsize="small", length=2)
        axis.set(xlabel="layer (0: embedding)", ylabel="")
        marks = {phase["peak_layer"]: PEAK, phase["decision_layer"]: DECISION}
        for layer, mark in marks.items():
            axis.axvline(layer + 0.5, color=INK, **mark)
    figure.axes[0].set_ylabel(next(iter(names)).partition(":")[0])
    return figure


def reliability(bins: pd.DataFrame) -> Figure:
    """Reliability diagrams: accuracy over confidence by bin, one panel a reading.

    Parameters
    ----------
    bins : DataFrame
        ``reading`` (the panel), ``state`` (lines of a panel) and the columns of
        :func:`layercal.metrics.readings.reliability`.

    Returns
    -------
    Figure
    """
    theme()
    panels = list(bins["reading"].unique())
    columns = 2 if len(panels) in (2, 4) else 3
    blocks = -(-len(panels) // columns)
    figure = Figure(figsize=(3.4 * columns, 3.6 * blocks + 0.4), layout="constrained")
    axes = figure.subplots(blocks, columns, sharex=True, sharey=True, squeeze=False)
    for axis, panel in zip(axes.flat[: len(panels)], panels, strict=True):
        _reliability_panel(axis, bins[bins["reading"] == panel])
        axis.set_title(panel, fontsize="small")
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis in axes[-1]:
        axis.set_xlabel("confidence (mean of bin)")
    for axis in axes.flat[max(len(panels) - columns, 0) : len(panels)]:
        axis.set_xlabel("confidence (mean of bin)")
        axis.tick_params(labelbottom=True)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy, share in bin")
    found = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(found.values(), found, loc="outside lower center", ncols=3, fontsize="small")
    return figure


def _reliability_panel(axis, bins: pd.DataFrame) -> None:
    states = list(bins["state"].unique())
    axis.plot([0, 1], [0, 1], color=GREY, lw=1, ls="--", label="perfectly calibrated")
    for place, state in enumerate(states):
        one = bins[bins["state"] == state]
        color = (PALETTE[0], PALETTE[3])[state == "steered"]
        reach = one["accuracy"] - one["ci_low"], one["ci_high"] - one["accuracy"]
        axis.errorbar(
            one["confidence"],
            one["accuracy"],
            [side.clip(lower=0) for side in reach],
            color=color,
            marker=MARKERS[place],
            markersize=4,
            capsize=2,
            lw=1.2,
            label=state,
        )
        width = 0.09 / len(states)
        left = one["bin"] - 0.095 + place * width
        share = one["n"] / one["n"].sum()
        axis.bar(left, share, width, align="edge", color=color, alpha=0.3, lw=0)
    axis.set(xlim=(0, 1), ylim=(0, 1))


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
        for column, group in zip(axes.T[: len(inside)], inside, strict=True):
            _group_panel(column, metrics, group)
        for axis in axes[:, len(inside) :].flat:
            axis.set_visible(False)
    return figure


def _group_panel(axes, metrics: pd.DataFrame, group: str) -> None:
    (top, bottom), errors = axes, _pick(metrics, "ece", group)
    _band(top, _pick(metrics, "accuracy", group), ACCURACY, "accuracy")
    top.axhline(_pick(metrics, "chance", group)["value"].iloc[-1], color=GREY, lw=1)
    _band(bottom, errors, ERROR, "ECE")
    _floor(bottom, errors)
    top.set_title(f"{group.partition(':')[2]}, n = {errors['n'].iloc[0]}")
    bottom.set_xlabel("layer")


DOSED = {"nll": "NLL in nats", "ece": "ECE", "accuracy": "accuracy"}


def dose_response(sweep: pd.DataFrame, mode: str, names: Sequence[str], controls: str) -> Figure:
    """NLL, ECE and accuracy over the scale, a column a layer, matched controls as a grey band.

    Parameters
    ----------
    sweep : DataFrame
        ``sweep.parquet``.
    mode : {"lens", "through-network", "all-positions"}
    names : sequence of str
        Directions to draw; the first one with its interval.
    controls : str
        Name of the rows that hold mean and range of the controls.

    Returns
    -------
    Figure
    """
    theme()
    chosen = sweep[sweep["mode"] == mode]
    of_controls = chosen["direction"] == controls
    drawn = chosen[chosen["direction"].isin(names)]
    layers = sorted(chosen["layer"].unique())
    blocks = -(-len(layers) // 5)
    columns = -(-len(layers) // blocks)
    figure = Figure(figsize=(max(2 * columns + 1, 7), 6 * blocks + 0.5), layout="constrained")
    axes = figure.subplots(3 * blocks, columns, sharex=True, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for place, layer in enumerate(layers):
        block, column = divmod(place, columns)
        for row, (metric, label) in enumerate(DOSED.items()):
            axis = axes[3 * block + row, column]
            axis.set_visible(True)
            axis.tick_params(labelbottom=row == 2, labelleft=column == 0)
            here = (chosen["layer"] == layer) & (chosen["metric"] == metric)
            _control_band(axis, chosen[here & of_controls])
            _dose_lines(axis, drawn[here[drawn.index]], names)
            # what harms at large scales would squeeze the rest
            first = drawn["direction"].eq(names[0]) & drawn["metric"].eq(metric)
            axis.set_ylim(0, drawn.loc[first, ["value", "ci_high"]].max(axis=None) * 1.1 or 1)
            if column == 0:
                axis.set_ylabel(label)
            if row == 0:
                axis.set_title(f"at layer {layer}")
            if row == 2:
                axis.set_xlabel("scale alpha")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize="small")
    return figure


def _control_band(axis, rows: pd.DataFrame) -> None:
    rows = rows.sort_values("alpha")
    ends = rows["alpha"], rows["ci_low"], rows["ci_high"]
    axis.fill_between(*ends, color=GREY, alpha=0.35, lw=0, label="95 % of the matched controls")
    axis.plot(rows["alpha"], rows["value"], color=GREY, lw=1.2, label="matched controls: mean")
    axis.axvline(0, color=INK, lw=0.7)


def _dose_lines(axis, rows: pd.DataFrame, names: Sequence[str]) -> None:
    colors = [ERROR, *(color for color in PALETTE if color != ERROR)]
    for place, name in enumerate(names):
        one = rows[rows["direction"] == name].sort_values("alpha")
        primary = name == names[0]
        axis.plot(
            one["alpha"],
            one["value"],
            **{**look(place), "color": colors[place]},
            markersize=4 if primary else 3,
            lw=2 if primary else 1.1,
            zorder=3 if primary else 2,
            label=name,
        )
        if primary:
            low, high = one["ci_low"], one["ci_high"]
            axis.fill_between(one["alpha"], low, high, color=colors[place], alpha=0.18, lw=0)


def cosines_everywhere(directions: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``directions.parquet`` of those directions that have a cosine at most layers.

    Some are described at all layers that a block writes, others, where they depend on the layer, at
    those that are steered alone.
    """
    rows = directions.dropna(subset="cosine")
    counts = rows.groupby("name")["layer"].transform("nunique")
    return rows[counts == counts.max()]


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
    rows = cosines_everywhere(directions)
    named = rows["name"].isin(["update-mean", "phase-mean", "middle-mean-0.5"])
    figure = Figure(figsize=(8.5, 3), layout="constrained")
    axis = figure.subplots()
    sns.lineplot(
        rows[named],
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
    axis.legend(title=None, **BESIDE)
    return figure


def dimensions(table: pd.DataFrame) -> Figure:
    """Spectrum of the change to the last layer, NLL and accuracy once r dimensions are put in.

    Parameters
    ----------
    table : DataFrame
        ``dimensions.parquet``.

    Returns
    -------
    Figure
    """
    theme()
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    axes = figure.subplots(1, 3, sharex=True)
    panels = {"explained": "share of squared norm", "nll": "NLL in nats", "accuracy": "accuracy"}
    layers = sorted(table["layer"].unique())
    colors = sns.color_palette("viridis", len(layers))
    ticks = [rank for rank in sorted(table["rank"].unique()) if rank in (0, 1, 4, 16, 64, 256)]
    for axis, (column, label) in zip(axes, panels.items(), strict=True):
        for place, layer in enumerate(layers):
            of_layer = table[table["layer"] == layer]
            sources = of_layer.groupby("source", sort=False)
            for (source, one), style in zip(sources, ("-", ":", "--"), strict=False):
                shape = {**look(place), "color": colors[place], "ls": style}
                axis.plot(one["rank"], one[column], **shape, markersize=4)
                axis.get_lines()[-1].set_label(f"{layer}, {source}")
        axis.set_xscale("symlog", base=2, linthresh=1)
        axis.set(xlabel="top r dimensions", ylabel=label, ylim=(0, None))
        axis.set_xticks(ticks, labels=map(str, ticks))
        axis.minorticks_off()
    axes[0].set(ylim=(0, 1))
    axes[-1].legend(title="from layer", **BESIDE)
    return figure


def transfer_matrix(rows: pd.DataFrame) -> Figure:
    """NLL change of what was fitted on one group, scored on each; one panel a mode.

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
            beyond=lambda t: (t["nll_change_high"] < 0) & (t["controls_nll_p"] <= 0.05)
        )
        values, beyond = (
            of_mode.pivot_table(name, "fitted_on", "scored_on", "first").loc[groups, groups]
            for name in ("nll_change", "beyond")
        )
        marked = values.map("{:+.2f}".format) + beyond.map(lambda clear: "*" if clear else "")
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
            cbar_kws={"label": "change of NLL in nats"},
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
        of_what = table[table["what"] == what].groupby("rule", sort=False)
        for place, (rule, one) in enumerate(of_what):
            label = f"{rule} ({one['size'].iloc[0]} of d)"
            axis.plot(one["layer"], one["share"], **look(place), markersize=3.5, label=label)
            axis.axhline(one["chance"].iloc[0], color=look(place)["color"], ls="--", lw=1)
        axis.set(xlabel="layer", ylim=(0, None))
    axes[0].set(ylabel="share of squared norm", title="residual stream")
    axes[1].set(title="block update")
    axes[1].legend(title="null space", **BESIDE)
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
        for place, (name, one) in enumerate(table.groupby("part")):
            change = one[f"{metric}_change"]
            low, high = (one[f"{metric}_change_{end}"] for end in ("low", "high"))
            axis.errorbar(
                one["block"] + (-0.12, 0.12)[place],
                change,
                [(change - low).clip(lower=0), (high - change).clip(lower=0)],
                **look(place),
                ls="",
                capsize=2.5,
                label=name,
            )
        axis.axhline(0, color=INK, lw=0.7)
        axis.set(xlabel="block", ylabel=f"change of {'ECE' if metric == 'ece' else metric}")
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[1].legend(title="without its", **BESIDE)
    return figure


def entropy_neurons(table: pd.DataFrame) -> Figure:
    """Change of ECE with each entropy neuron at its mean, against random sets of neurons.

    Parameters
    ----------
    table : DataFrame
        ``neurons.parquet``.

    Returns
    -------
    Figure
    """
    theme()
    random = table["without"].str.startswith("random")
    names = list(table.loc[~random, "without"].unique())
    figure = Figure(figsize=(8.5, 0.3 * len(names) + 1.5), layout="constrained")
    axis = figure.subplots()
    low, high = table.loc[random & table["norm"].eq("live"), "ece_change"].agg(["min", "max"])
    axis.axvspan(low, high, color=GREY, alpha=0.35, lw=0, label="random sets: range (norm live)")
    for place, (norm, one) in enumerate(table[~random].groupby("norm", sort=False)):
        one = one.set_index("without").loc[names]
        change = one["ece_change"]
        reach = change - one["ece_change_low"], one["ece_change_high"] - change
        axis.errorbar(
            change,
            [row + 0.28 * place - 0.14 for row in range(len(names))],
            xerr=[side.clip(lower=0) for side in reach],
            **look(place),
            ls="",
            markersize=5,
            capsize=2.5,
            label=f"norm {norm}",
        )
    axis.axvline(0, color=INK, lw=0.7)
    axis.set_yticks(range(len(names)), labels=names)
    axis.invert_yaxis()
    axis.set(xlabel="change of ECE", ylabel="at its mean")
    axis.legend(**BESIDE)
    return figure


def atlas(curves: pd.DataFrame, reported: pd.DataFrame) -> Figure:
    """Accuracy and ECE of several reports over relative depth, with reported reference points.

    Parameters
    ----------
    curves : DataFrame
        ``report``, ``depth`` (layer over the number of blocks), ``metric``, ``value``, ``ci_low``
        and ``ci_high``.
    reported : DataFrame
        ``depth``, ``metric``, ``value`` (NaN where only a span of layers is reported), ``depth_to``
        and ``text``.

    Returns
    -------
    Figure
    """
    theme()
    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots(2, 1, sharex=True)
    for axis, (metric, label) in zip(
        axes, {"accuracy": "accuracy", "ece": "ECE"}.items(), strict=True
    ):
        of_metric = curves[curves["metric"] == metric]
        for place, (name, one) in enumerate(of_metric.groupby("report", sort=False)):
            axis.plot(one["depth"], one["value"], label=name, **look(place), markersize=3.5)
            band = {"color": look(place)["color"], "alpha": 0.12, "lw": 0}
            axis.fill_between(one["depth"], one["ci_low"], one["ci_high"], **band)
        for row in reported[reported["metric"] == metric].itertuples():
            if pd.isna(row.value):
                axis.axvspan(row.depth, row.depth_to, color=GREY, alpha=0.3, lw=0, label=row.text)
            else:
                axis.plot(row.depth, row.value, "*", ms=13, color=INK, mfc="white", label=row.text)
        axis.set(ylabel=label, ylim=(0, 1 if metric == "accuracy" else None), xlim=(0, 1.01))
    axes[1].set_xlabel("relative depth (layer / number of blocks)")
    found = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    figure.legend(
        found.values(), found, loc="outside lower center", ncols=1, fontsize="small", frameon=False
    )
    return figure


def rule_graph(edges: Sequence[tuple[str, str]]) -> Figure:
    """Rules of the workflow, each above those that read what it makes.

    Parameters
    ----------
    edges : sequence of (str, str)
        From the rule that makes a file to the rule that reads it.

    Returns
    -------
    Figure
    """
    theme()
    graph = networkx.transitive_reduction(networkx.DiGraph(edges))
    # as low as what reads it allows
    rows = list(networkx.topological_generations(graph.reverse()))
    place: dict[str, tuple[float, int]] = {}
    for height, row in enumerate(rows):
        # each where those that read it are on average, so that few arrows cross
        wanted = {
            rule: sum(place[one][0] for one in graph.successors(rule))
            / max(graph.out_degree(rule), 1)
            for rule in row
        }
        for column, rule in enumerate(sorted(row, key=lambda rule: (wanted[rule], rule))):
            place[rule] = column - (len(row) - 1) / 2, height
    widest = max(map(len, rows))
    figure = Figure(figsize=(2.1 * widest + 0.4, 0.75 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for source, target in sorted(graph.edges):
        arrow = {"arrowstyle": "-|>", "color": GREY, "shrinkA": 14, "shrinkB": 14}
        axis.annotate("", place[target], place[source], arrowprops=arrow)
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": PALETTE[0]}
    for rule, at in sorted(place.items()):
        axis.text(*at, rule.replace("_", " "), ha="center", va="center", size="small", bbox=box)
    axis.set(xlim=(-widest / 2, widest / 2), ylim=(-0.5, len(rows) - 0.5))
    axis.set_axis_off()
    return figure


def nothing(reason: str) -> Figure:
    """A figure that says why there is nothing to show."""
    theme()
    figure = Figure(figsize=(8.5, 1))
    figure.text(0.02, 0.5, reason, va="center")
    return figure
