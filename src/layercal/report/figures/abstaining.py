"""Selective prediction: what is left wrong where only confident answers count."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layercal.metrics.recalibration import NONE
from layercal.report import style, words
from layercal.report.figures.curves import DEPTH
from layercal.report.figures.registry import Drawing, figure
from layercal.report.style import GREY
from layercal.results import Results
from layercal.steering.steered import MODES
from layercal.steering.verdicts import CHOSEN

AREA = "excess_aurc"
# steered lies above, so that both are seen where steering changes nothing
STATES = {
    False: ("as it is", {"ls": "-", "lw": 3, "alpha": 0.4}),
    True: ("steered", {"ls": "--", "lw": 1.5}),
}


@figure(
    "selective",
    "Left: share of wrong answers among the most confident, by the share that is answered, before "
    "and after steering. Right: area between that curve and the one of the best order (excess "
    "AURC), over the layers; steered, where a direction was added. Scales were chosen on other "
    "questions.",
)
def risk_coverage(results: Results) -> Drawing:
    """Whether confidence tells right answers from wrong ones, before and after steering."""
    curves, areas = shown_curves(results), excess_areas(results)
    last = areas[~areas["steered"] & areas["layer"].eq(results.phase["final_layer"])]
    alt = (
        "Risk over coverage before and after steering, and excess AURC over the layers. At the "
        f"last layer, as it is, excess AURC is {last['value'].iloc[0]:.3f}."
    )
    rows = pd.concat([curves, areas], ignore_index=True)
    return Drawing(plot_risk_coverage(curves, areas, results.phase), rows, alt)


def shown_curves(results: Results) -> pd.DataFrame:
    """Curves of each mode: at the first steered layer, or at the last, the steered one chosen."""
    parts = []
    for mode, rows in results.risk_coverage.groupby("mode", sort=False):
        first = rows["layer"].min()
        layer = MODES[mode].read(first, results.phase["final_layer"])
        parts.append(_main(rows).assign(reading=f"{mode}, read at layer {layer:.0f}"))
    return pd.concat(parts, ignore_index=True)


def excess_areas(results: Results) -> pd.DataFrame:
    """Excess AURC by the layer that is read."""
    plain = words.recalibrated(results, NONE, AREA).reset_index()
    parts = [plain.assign(steered=False, mode="lens")]
    rows = results.selective
    for mode, of_mode in rows[rows["metric"].eq(AREA) & rows["steered"]].groupby("mode"):
        if mode != "lens":
            of_mode = _main(of_mode).assign(layer=results.phase["final_layer"])
        parts.append(of_mode)
    return pd.concat(parts, ignore_index=True)[["layer", "value", "steered", "mode"]]


def _main(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the layer chosen with the scale, else of the first one."""
    chosen = rows["layer_choice"].eq(CHOSEN)
    return rows[chosen if chosen.any() else rows["layer"].eq(rows["layer"].min())]


def plot_risk_coverage(curves: pd.DataFrame, areas: pd.DataFrame, phase: dict) -> Figure:
    """Risk over coverage, and excess AURC over the layers, before and after steering.

    Parameters
    ----------
    curves : DataFrame
        From :func:`shown_curves`.
    areas : DataFrame
        From :func:`excess_areas`.
    phase : dict
        ``phase.json``.
    """
    drawn = style.new(9.6, 4.8)
    left, right = drawn.subplots(1, 2)
    for place, (reading, rows) in enumerate(curves.groupby("reading", sort=False)):
        for steered, (said, look) in STATES.items():
            of_state, label = rows[rows["steered"] == steered], f"{reading}: {said}"
            at = of_state["coverage"], of_state["risk"]
            left.plot(*at, color=style.look(3 * place)["color"], label=label, **look)
    left.set(xlabel="coverage (share answered)", ylabel="risk (share wrong)", xlim=(0, 1))
    left.set_ylim(0, None)
    _area_panel(right, areas, phase)
    for axes in (left, right):
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), fontsize="small")
    return drawn


def _area_panel(axes: Axes, areas: pd.DataFrame, phase: dict) -> None:
    plain, steered = (areas[areas["steered"].eq(state)] for state in STATES)
    axes.plot(plain["layer"], plain["value"], color=GREY, marker="o", ms=3.5, label="as it is")
    for place, (mode, rows) in enumerate(steered.groupby("mode", sort=False)):
        look = {**style.look(3 * place), "ms": 7, "ls": "", "mfc": "none", "mew": 1.6}
        axes.plot(rows["layer"], rows["value"], **look, label=f"steered, {mode}")
    axes.axvline(phase["peak_layer"], color=GREY, zorder=0, **style.PEAK, label="peak of ECE")
    axes.set(xlabel=DEPTH, ylabel="excess AURC", ylim=(0, None))
