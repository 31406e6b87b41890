"""The directions, and how many dimensions the correction has."""

from __future__ import annotations

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layercal.report import style
from layercal.report.figures.registry import Drawing, figure
from layercal.report.style import BESIDE, INK
from layercal.results import Results
from layercal.steering import dimensions as by_rank


@figure(
    "directions",
    "Mean cosine of directions with the update of each block; bands, where they can be seen: range "
    "over the folds of cross-fitting.",
)
def cosines(results: Results) -> Drawing:
    """Which blocks write along a direction."""
    rows = cosines_everywhere(results.directions)
    name = rows["name"].iloc[0]
    mean = rows[rows["name"] == name].groupby("layer")["cosine"].mean()
    alt = (
        "Mean cosine of directions with the block update into each layer. For "
        f"{name} it is largest at layer {mean.idxmax()}, {mean.max():.2f}."
    )
    return Drawing(plot_cosines(rows), rows, alt)


@figure(
    "dimensions",
    "Left, the spectrum: share of the squared norm of h[L] - h[layer] in the top r directions, on "
    "held-out questions. Middle and right: NLL and accuracy once they are put in.",
)
def dimensions(results: Results) -> Drawing | str:
    """How low-dimensional the correction is."""
    table = results.dimensions
    layer = table["layer"].min()
    if table["explained"].isna().all():
        return f"From layer {layer}, the peak of ECE, to the last layer nothing changes."
    alt = (
        "Spectrum of the change to the last layer, and NLL and accuracy once it is put in, by "
        f"dimensions. {by_rank.in_words(table, layer)}"
    )
    return Drawing(plot_dimensions(table[table["source"] != by_rank.OTHERS]), table, alt)


def cosines_everywhere(directions: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``directions.parquet`` of those directions that have a cosine at most layers.

    Some are described at all layers that a block writes, others, where they depend on the layer, at
    those that are steered alone.
    """
    rows = directions.dropna(subset="cosine")
    counts = rows.groupby("name")["layer"].transform("nunique")
    return rows[counts == counts.max()]


def plot_cosines(rows: pd.DataFrame, axes: Axes | None = None) -> Figure:
    """Mean cosine with the block update into every layer, of directions that are one for all.

    Parameters
    ----------
    rows : DataFrame
        From :func:`cosines_everywhere`.
    axes : Axes, optional
        To draw on; those of a new figure if left out.
    """
    axes = style.panel(axes, 8.5, 3)
    named = rows["name"].isin(["update-mean", "phase-mean", "middle-mean-0.5"])
    sns.lineplot(
        rows[named],
        x="layer",
        y="cosine",
        hue="name",
        style="name",
        markers=True,
        dashes=False,
        errorbar=("pi", 100),
        ax=axes,
    )
    axes.axhline(0, color=INK, lw=0.7)
    axes.set(xlabel="block update into layer", ylabel="mean cosine with direction")
    axes.legend(title=None, **BESIDE)
    return style.whole(axes)


def plot_dimensions(table: pd.DataFrame) -> Figure:
    """Spectrum of the change to the last layer, NLL and accuracy once r dimensions are put in.

    Parameters
    ----------
    table : DataFrame
        ``dimensions.parquet``.
    """
    figure = style.new(9.6, 3.4)
    panels = {"explained": "share of squared norm", "nll": "NLL in nats", "accuracy": "accuracy"}
    layers = sorted(table["layer"].unique())
    colors = sns.color_palette("viridis", len(layers))
    ticks = [rank for rank in sorted(table["rank"].unique()) if rank in (0, 1, 4, 16, 64, 256)]
    all_axes = figure.subplots(1, 3, sharex=True)
    for axes, (column, label) in zip(all_axes, panels.items(), strict=True):
        for index, layer in enumerate(layers):
            of_layer = table[table["layer"] == layer]
            sources = of_layer.groupby("source", sort=False)
            for (source, rows), dashes in zip(sources, ("-", ":", "--"), strict=False):
                shape = {**style.look(index), "color": colors[index], "ls": dashes}
                axes.plot(rows["rank"], rows[column], **shape, markersize=4)
                axes.get_lines()[-1].set_label(f"{layer}, {source}")
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set(xlabel="top r dimensions", ylabel=label, ylim=(0, None))
        axes.set_xticks(ticks, labels=map(str, ticks))
        axes.minorticks_off()
    all_axes[0].set(ylim=(0, 1))
    all_axes[-1].legend(title="from layer", **BESIDE)
    return figure
