"""Last layer or depth: the null space, and what blocks and entropy neurons do for ECE."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layercal.report import style
from layercal.report.figures.registry import Drawing, figure
from layercal.report.style import BESIDE, GREY, INK
from layercal.results import Results


@figure("null-space", "Share of the squared norm in the null space, over the layers.")
def null_space(results: Results) -> Drawing:
    """How much of the stream moves no logit directly."""
    table = results.nullspace
    first = table[table["rule"] == table["rule"].iloc[0]]
    last = first[first["layer"] == first["layer"].max()].set_index("what")["share"]
    alt = (
        "Share of the stream and of block updates in the null space, over the layers. By rule "
        f"{first['rule'].iloc[0]} it is {last['residual']:.1%} of the stream and "
        f"{last['update']:.1%} of the update at the last layer."
    )
    return Drawing(plot_null_space(table), table, alt)


@figure("blocks", "Change at the last layer without attention or MLP of each block.")
def blocks(results: Results) -> Drawing | str:
    """What each block does for ECE."""
    rows = results.blocks
    if not len(rows):
        return "What this model's attention and MLP write cannot be told apart."
    most = rows.loc[rows["ece_change"].abs().idxmax()]
    alt = (
        "Change of ECE and accuracy without attention or MLP of each block. ECE changes most "
        f"without {most['without']}: {most['ece_change']:+.3f} (95 % CI "
        f"{most['ece_change_low']:+.3f} to {most['ece_change_high']:+.3f})."
    )
    return Drawing(plot_ablations(rows), rows, alt)


@figure("neurons", "Change of ECE with entropy neurons at their mean.")
def neurons(results: Results) -> Drawing | str:
    """What entropy neurons do for ECE."""
    table = results.neurons
    if not len(table):
        return "The neurons of this model's last MLP cannot be told."
    together = table["what"].eq("entropy neurons") & table["norm"].eq("live")
    row = table[together].iloc[0]
    alt = (
        "Change of ECE with each entropy neuron at its mean, against random sets of neurons. "
        f"{row['without']} together: {row['ece_change']:+.3f} "
        f"(95 % CI {row['ece_change_low']:+.3f} to {row['ece_change_high']:+.3f})."
    )
    return Drawing(plot_neurons(table), table, alt)


def plot_null_space(table: pd.DataFrame) -> Figure:
    """Share of the stream and of block updates in the null space, over the layers.

    Parameters
    ----------
    table : DataFrame
        ``nullspace.parquet``.
    """
    figure = style.new(8.5, 3.2)
    panels = figure.subplots(1, 2, sharex=True)
    for axes, what in zip(panels, ("residual", "update"), strict=True):
        of_what = table[table["what"] == what].groupby("rule", sort=False)
        for index, (rule, rows) in enumerate(of_what):
            look, label = style.look(index), f"{rule} ({rows['size'].iloc[0]} of d)"
            axes.plot(rows["layer"], rows["share"], **look, markersize=3.5, label=label)
            axes.axhline(rows["chance"].iloc[0], color=look["color"], ls="--", lw=1)
        axes.set(xlabel="layer", ylim=(0, None))
    panels[0].set(ylabel="share of squared norm", title="residual stream")
    panels[1].set(title="block update")
    panels[1].legend(title="null space", **BESIDE)
    return figure


def plot_ablations(table: pd.DataFrame) -> Figure:
    """Change of ECE and accuracy at the last layer without each part of each block.

    Parameters
    ----------
    table : DataFrame
        ``blocks.parquet``.
    """
    figure = style.new(8.5, 3.2)
    panels = figure.subplots(1, 2, sharex=True)
    for axes, metric in zip(panels, ("ece", "accuracy"), strict=True):
        for index, (name, rows) in enumerate(table.groupby("part")):
            change = rows[f"{metric}_change"]
            low, high = (rows[f"{metric}_change_{end}"] for end in ("low", "high"))
            axes.errorbar(
                rows["block"] + (-0.12, 0.12)[index],
                change,
                [(change - low).clip(lower=0), (high - change).clip(lower=0)],
                **style.look(index),
                ls="",
                capsize=2.5,
                label=name,
            )
        axes.axhline(0, color=INK, lw=0.7)
        axes.set(xlabel="block", ylabel=f"change of {'ECE' if metric == 'ece' else metric}")
        axes.xaxis.get_major_locator().set_params(integer=True)
    panels[1].legend(title="without its", **BESIDE)
    return figure


def plot_neurons(table: pd.DataFrame, axes: Axes | None = None) -> Figure:
    """Change of ECE with each entropy neuron at its mean, against random sets of neurons.

    Parameters
    ----------
    table : DataFrame
        ``neurons.parquet``.
    axes : Axes, optional
        To draw on; those of a new figure if left out.
    """
    random = table["what"].eq("random neurons")
    names = list(table.loc[~random, "without"].unique())
    axes = style.panel(axes, 8.5, 0.3 * len(names) + 1.5)
    low, high = table.loc[random & table["norm"].eq("live"), "ece_change"].agg(["min", "max"])
    axes.axvspan(low, high, color=GREY, alpha=0.35, lw=0, label="random sets: range (norm live)")
    for index, (norm, rows) in enumerate(table[~random].groupby("norm", sort=False)):
        rows = rows.set_index("without").loc[names]
        change = rows["ece_change"]
        reach = change - rows["ece_change_low"], rows["ece_change_high"] - change
        axes.errorbar(
            change,
            [row + 0.28 * index - 0.14 for row in range(len(names))],
            xerr=[side.clip(lower=0) for side in reach],
            **style.look(index),
            ls="",
            markersize=5,
            capsize=2.5,
            label=f"norm {norm}",
        )
    axes.axvline(0, color=INK, lw=0.7)
    axes.set_yticks(range(len(names)), labels=names)
    axes.invert_yaxis()
    axes.set(xlabel="change of ECE", ylabel="at its mean")
    axes.legend(**BESIDE)
    return style.whole(axes)
