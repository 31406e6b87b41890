"""Figures of a whole study: the curves of all reports, and the rules that make them."""

from __future__ import annotations

from collections.abc import Sequence

import networkx
import pandas as pd
from matplotlib.figure import Figure

from layercal.report import style
from layercal.report.style import GREY, INK, PALETTE


def plot_atlas(curves: pd.DataFrame, reported: pd.DataFrame) -> Figure:
    """Accuracy and ECE of several reports over relative depth, with reported reference points.

    Parameters
    ----------
    curves : DataFrame
        ``report``, ``depth`` (layer over the number of blocks), ``metric``, ``value``, ``ci_low``
        and ``ci_high``.
    reported : DataFrame
        ``depth``, ``metric``, ``value`` (NaN where only a span of layers is reported), ``depth_to``
        and ``text``.
    """
    figure = style.new(9, 7)
    panels = figure.subplots(2, 1, sharex=True)
    for axes, metric in zip(panels, ("accuracy", "ece"), strict=True):
        of_metric = curves[curves["metric"] == metric]
        for index, (name, rows) in enumerate(of_metric.groupby("report", sort=False)):
            look = style.look(index)
            axes.plot(rows["depth"], rows["value"], label=name, **look, markersize=3.5)
            shade = {"color": look["color"], "alpha": 0.12, "lw": 0}
            axes.fill_between(rows["depth"], rows["ci_low"], rows["ci_high"], **shade)
        for row in reported[reported["metric"] == metric].to_dict("records"):
            depth, value, text = row["depth"], row["value"], row["text"]
            if pd.isna(value):
                axes.axvspan(depth, row["depth_to"], color=GREY, alpha=0.3, lw=0, label=text)
            else:
                axes.plot(depth, value, "*", ms=13, color=INK, mfc="white", label=text)
    panels[0].set(ylabel="accuracy", ylim=(0, 1), xlim=(0, 1.01))
    panels[1].set(ylabel="ECE", ylim=(0, None), xlim=(0, 1.01))
    panels[1].set_xlabel("relative depth (layer / number of blocks)")
    style.shared_legend(figure, ncols=1, frameon=False)
    return figure


def plot_rules(edges: Sequence[tuple[str, str]]) -> Figure:
    """Rules of the workflow, each above those that read what it makes.

    Parameters
    ----------
    edges : sequence of (str, str)
        From the rule that makes a file to the rule that reads it.
    """
    graph = networkx.transitive_reduction(networkx.DiGraph(edges))
    # as low as what reads it allows
    rows = list(networkx.topological_generations(graph.reverse()))
    position: dict[str, tuple[float, int]] = {}
    for height, row in enumerate(rows):
        # each where those that read it are on average, so that few arrows cross
        wanted = {
            rule: sum(position[reader][0] for reader in graph.successors(rule))
            / max(graph.out_degree(rule), 1)
            for rule in row
        }
        for column, rule in enumerate(sorted(row, key=lambda rule: (wanted[rule], rule))):
            position[rule] = column - (len(row) - 1) / 2, height
    widest = max(map(len, rows))
    figure = style.new(2.1 * widest + 0.4, 0.75 * len(rows))
    axes = figure.subplots()
    for source, target in sorted(graph.edges):
        arrow = {"arrowstyle": "-|>", "color": GREY, "shrinkA": 14, "shrinkB": 14}
        axes.annotate("", position[target], position[source], arrowprops=arrow)
    box = {"boxstyle": "round", "facecolor": "white", "edgecolor": PALETTE[0]}
    for rule, at in sorted(position.items()):
        axes.text(*at, rule.replace("_", " "), ha="center", va="center", size="small", bbox=box)
    axes.set(xlim=(-widest / 2, widest / 2), ylim=(-0.5, len(rows) - 0.5))
    axes.set_axis_off()
    return figure
