"""The one look of all figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from matplotlib.artist import Artist

INK, GREY = "#222222", "#9a9a9a"
PALETTE = sns.color_palette("colorblind")
ACCURACY, CONFIDENCE, ERROR = PALETTE[0], PALETTE[1], PALETTE[3]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "*"]
# lines at the decision layer and at the peak of ECE
DECISION: dict[str, Any] = {"ls": "--", "lw": 1.2}
PEAK: dict[str, Any] = {"ls": ":", "lw": 1.6}
# a legend to the right of its axis
BESIDE: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "fontsize": "small"}


def look(index: int) -> dict:
    """Colour and marker of one of several lines; no two of the first 40 are alike."""
    return {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}


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


def new(width: float, height: float) -> Figure:
    """An empty figure in the theme; inches."""
    theme()
    return Figure(figsize=(width, height), layout="constrained")


def panel(axes: Axes | None, width: float, height: float) -> Axes:
    """Axes to draw on: those given, else those of a figure of this size."""
    return new(width, height).subplots() if axes is None else axes


def whole(axes: Axes) -> Figure:
    """The figure that axes are drawn in, of which a subfigure is only a part."""
    return axes.figure.figure


def shared_legend(figure: Figure, **settings: Any) -> None:
    """Name below a figure what its axes show, each label once."""
    handles: dict[str, Artist] = {}
    for axes in figure.axes:
        shown, labels = axes.get_legend_handles_labels()
        handles |= dict(zip(labels, shown, strict=True))
    settings = {"loc": "outside lower center", "fontsize": "small", **settings}
    figure.legend(handles.values(), handles, **settings)
