"""What steering does: dose-response, and transfer between categories."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layercal.report import style
from layercal.report.figures.registry import Drawing, figure
from layercal.report.style import ERROR, GREY, INK, PALETTE
from layercal.results import Results
from layercal.steering.tally import ALL_CONTROLS

DOSED = {"nll": "NLL in nats", "ece": "ECE", "accuracy": "accuracy"}
SHOWN = "NLL, ECE and accuracy over the scale alpha. Grey: random directions that move no option "
SHOWN += "logit and grow the norm as much."


@figure("lens", f"Dose-response, mode lens: {SHOWN}")
def dose_lens(results: Results) -> Drawing | str:
    """What a direction does to the layer that it is added at."""
    return _dose(results, "lens")


@figure("through-network", f"Dose-response, mode through-network: {SHOWN}")
def dose_network(results: Results) -> Drawing | str:
    """What a direction does to the last layer."""
    return _dose(results, "through-network")


@figure("all-positions", f"Dose-response, mode all-positions: {SHOWN}")
def dose_everywhere(results: Results) -> Drawing | str:
    """What a direction does to the last layer when it is added at every position."""
    return _dose(results, "all-positions")


@figure("transfer", "Change of NLL, by category fitted on and scored.")
def transfer(results: Results) -> Drawing | str:
    """Whether a direction carries over from one category to another."""
    rows = results.transfer
    if not len(rows) or rows["scored_on"].nunique() < 2:
        return "Too few categories hold enough questions to fit a direction on."
    rows = rows[rows["layer"] == rows["layer"].min()]
    change = rows["nll_change"]
    alt = (
        "Change of NLL by category that the direction was fitted on and category scored, "
        f"from {change.min():+.2f} to {change.max():+.2f} nats."
    )
    return Drawing(plot_transfer(rows), rows, alt)


def _dose(results: Results, mode: str) -> Drawing | str:
    rows = results.sweep[results.sweep["mode"] == mode]
    if not len(rows):
        return f"Mode {mode} was not part of this study."
    primary = rows["direction"].iloc[0]
    asked = [primary, "phase-mean", "gradient", "probe", f"{primary} (subtract)"]
    names = [name for name in dict.fromkeys(asked) if name in set(rows["direction"])]
    rows = rows[rows["metric"].isin(DOSED) & rows["direction"].isin([*names, ALL_CONTROLS])]
    of = rows[(rows["direction"] == primary) & (rows["metric"] == "nll")]
    layer = of["layer"].min()
    nll = of[of["layer"] == layer].set_index("alpha")["value"]
    alt = (
        f"NLL, ECE and accuracy over the scale alpha, mode {mode}, matched controls as a grey "
        f"band. {primary} at layer {layer}: NLL {nll[0]:.2f} unsteered, lowest at alpha "
        f"{nll.idxmin():g}, {nll.min():.2f}."
    )
    return Drawing(plot_dose_response(rows, names, ALL_CONTROLS), rows, alt)


def plot_dose_response(rows: pd.DataFrame, names: Sequence[str], controls: str) -> Figure:
    """NLL, ECE and accuracy over the scale, a column a layer, matched controls as a grey band.

    Parameters
    ----------
    rows : DataFrame
        Of ``sweep.parquet``, of one mode.
    names : sequence of str
        Directions to draw; the first one with its interval.
    controls : str
        Name of the rows that hold mean and range of the controls.
    """
    layers = sorted(rows["layer"].unique())
    blocks = -(-len(layers) // 5)
    columns = -(-len(layers) // blocks)
    figure = style.new(max(2 * columns + 1, 7), 6 * blocks + 0.5)
    grid = figure.subplots(3 * blocks, columns, sharex=True, squeeze=False)
    for axes in grid.flat:
        axes.set_visible(False)
    for index, layer in enumerate(layers):
        block, column = divmod(index, columns)
        for row, (metric, label) in enumerate(DOSED.items()):
            axes, of_metric = grid[3 * block + row, column], rows[rows["metric"] == metric]
            axes.set_visible(True)
            axes.tick_params(labelbottom=row == 2, labelleft=column == 0)
            _dose_panel(axes, of_metric[of_metric["layer"] == layer], names, controls)
            # what harms at large scales would squeeze the rest
            first = of_metric[of_metric["direction"] == names[0]]
            axes.set_ylim(0, first[["value", "ci_high"]].max().max() * 1.1 or 1)
            if column == 0:
                axes.set_ylabel(label)
            if row == 0:
                axes.set_title(f"at layer {layer}")
            if row == 2:
                axes.set_xlabel("scale alpha")
    style.shared_legend(figure, ncols=3)
    return figure


def _dose_panel(axes: Axes, rows: pd.DataFrame, names: Sequence[str], controls: str) -> None:
    _control_band(axes, rows[rows["direction"] == controls].sort_values("alpha"))
    colors = [ERROR, *(color for color in PALETTE if color != ERROR)]
    for index, name in enumerate(names):
        of_name = rows[rows["direction"] == name].sort_values("alpha")
        primary = name == names[0]
        axes.plot(
            of_name["alpha"],
            of_name["value"],
            **{**style.look(index), "color": colors[index]},
            markersize=4 if primary else 3,
            lw=2 if primary else 1.1,
            zorder=3 if primary else 2,
            label=name,
        )
        if primary:
            low, high = of_name["ci_low"], of_name["ci_high"]
            axes.fill_between(of_name["alpha"], low, high, color=colors[index], alpha=0.18, lw=0)


def _control_band(axes: Axes, rows: pd.DataFrame) -> None:
    low, high, label = rows["ci_low"], rows["ci_high"], "95 % of the matched controls"
    axes.fill_between(rows["alpha"], low, high, color=GREY, alpha=0.35, lw=0, label=label)
    axes.plot(rows["alpha"], rows["value"], color=GREY, lw=1.2, label="matched controls: mean")
    axes.axvline(0, color=INK, lw=0.7)


def plot_transfer(rows: pd.DataFrame) -> Figure:
    """NLL change of what was fitted on one group, scored on each; one panel a mode.

    Parameters
    ----------
    rows : DataFrame
        The ``transfer`` of ``summary.json``, at one layer a mode.
    """
    modes = list(rows["mode"].unique())
    groups = list(rows["scored_on"].unique())
    figure = style.new(4.4 * len(modes) + 0.6, 3.6)
    panels = figure.subplots(1, len(modes), sharey=True, squeeze=False)[0]
    for axes, mode in zip(panels, modes, strict=True):
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
            cbar=axes is panels[-1],
            cbar_kws={"label": "change of NLL in nats"},
            annot_kws={"size": "small"},
            ax=axes,
        )
        layer = of_mode["layer"].iloc[0]
        axes.set(title=f"{mode}, layer {layer}", xlabel="scored on", ylabel="")
        axes.tick_params(labelsize="small", length=0, axis="both", rotation=0)
    panels[0].set_ylabel("fitted on")
    return figure
