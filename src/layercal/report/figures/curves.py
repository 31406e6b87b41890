"""Curves over the layers: accuracy, confidence, errors, letters named; and what all such share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from layercal.report import style
from layercal.report.figures.registry import Drawing, figure
from layercal.report.style import ACCURACY, BESIDE, CONFIDENCE, DECISION, ERROR, GREY, PALETTE, PEAK
from layercal.results import Results, select
from layercal.sources.questions import LETTERS

if TYPE_CHECKING:
    from matplotlib.typing import ColorType

COLUMNS = ["group", "lens", "metric", "n_bins", "layer", "value", "ci_low", "ci_high"]
COLUMNS += ["null_mean", "null_high", "n"]
FLOOR = "null floor: up to the 95th percentile\nof a perfectly calibrated model"
PHASE = {"accuracy": "accuracy", "confidence": "mean confidence", "ece": "ECE"}
DEPTH = "layer (0: embedding)"


@figure("phase", "Accuracy, mean confidence and ECE over the layers.")
def layer_curves(results: Results) -> Drawing:
    """Whether there is a correction phase."""
    rows = phase_rows(results)
    alt = (
        "Curves of accuracy, mean confidence and ECE over the layers, with 95 % bands. "
        f"{_over_depth(rows, PHASE, results.phase)}"
    )
    return Drawing(plot_layer_curves(rows, results.phase), rows, alt)


@figure(
    "depth",
    "MCE, and what normalising over the options hides. MCE counts every bin that holds a question, "
    "so its floor is high and uneven. Where the option mass is near 0, the model is not yet about "
    "to name an option at all.",
)
def depth_curves(results: Results) -> Drawing:
    """What the layer curves leave out."""
    names = {"mce": "MCE", "option_mass": "option mass", "entropy": "entropy in nats"}
    rows = select(results.metrics, list(names))[COLUMNS]
    alt = (
        "Curves of MCE, option mass and entropy over the layers, with 95 % bands. "
        f"{_over_depth(rows, names, results.phase)}"
    )
    return Drawing(plot_depth_curves(rows, results.phase), rows, alt)


@figure("letters", "Share of the predictions that name each letter, over the layers.")
def letters(results: Results) -> Drawing:
    """Whether a letter is named more often than it is right."""
    phase, prompts, metrics = results.phase, results.prompts, results.metrics
    counts = prompts["answer"].value_counts(normalize=True)
    listed = LETTERS[: max(map(len, prompts["option_ids"]))]
    answers = pd.Series({name: counts.get(index, 0.0) for index, name in enumerate(listed)})
    # with all rotations, letters are those of the options as they were shown
    order = "rotation-0" if "rotation-0" in set(metrics["order"]) else None
    rows = select(metrics, [f"predicted_{name}" for name in listed], order=order)[COLUMNS]
    top = rows[rows["layer"] == phase["peak_layer"]].nlargest(1, "value").iloc[0]
    alt = (
        "Share of predictions that name each option letter, over the layers. At the peak of ECE, "
        f"layer {phase['peak_layer']}, {top['metric'][-1]} is named most, in {top['value']:.0%}; "
        f"it is right in {answers[top['metric'][-1]]:.0%}."
    )
    return Drawing(plot_letters(rows, phase, answers), rows, alt)


@figure("lenses", "Accuracy and ECE through both lenses, with the decision layer of each.")
def lenses(results: Results) -> Drawing:
    """Whether what the logit lens shows rests on its coordinates."""
    both = [select(results.metrics, ["accuracy", "ece"], lens=lens) for lens in ("logit", "tuned")]
    rows, phase = pd.concat(both)[COLUMNS], results.phase
    alt = (
        "Accuracy and ECE over the layers through the logit lens and the tuned lens. Accuracy has "
        f"settled from layer {phase['decision_layer']} on in the logit lens, from layer "
        f"{phase['tuned']['decision_layer']} on in the tuned lens."
    )
    return Drawing(plot_lenses(rows, phase), rows, alt)


def phase_rows(results: Results) -> pd.DataFrame:
    """Rows that :func:`plot_layer_curves` shows."""
    return select(results.metrics, list(PHASE))[COLUMNS]


def _over_depth(rows: pd.DataFrame, names: dict[str, str], phase: dict) -> str:
    """Values at decision layer, peak and last layer, in words."""
    layers = sorted({phase["decision_layer"], phase["peak_layer"], phase["final_layer"]})
    values = rows.set_index(["metric", "layer"])["value"]
    said = [
        f"{label} is {', '.join(f'{values[metric, layer]:.2f}' for layer in layers)}"
        for metric, label in names.items()
    ]
    return f"At layers {', '.join(map(str, layers))}: {'; '.join(said)}."


def of(rows: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Rows of one metric, by layer."""
    return rows[rows["metric"] == metric].sort_values("layer")


def band(axes: Axes, rows: pd.DataFrame, color: ColorType, label: str, marker: str = "o") -> None:
    """Draw a metric over the layers with its interval."""
    axes.plot(rows["layer"], rows["value"], color=color, label=label, marker=marker, markersize=3.5)
    axes.fill_between(rows["layer"], rows["ci_low"], rows["ci_high"], color=color, alpha=0.18, lw=0)


def counted(rows: pd.DataFrame) -> str:
    """Title that says what bands are and of how many questions."""
    return f"(n = {rows['n'].iloc[0]}; bands: 95 % CI over questions)"


def floor(axes: Axes, rows: pd.DataFrame) -> None:
    """Shade what a perfectly calibrated model would show, for errors that have such a floor."""
    if rows["null_high"].notna().any():
        layers, high = rows["layer"], rows["null_high"]
        axes.fill_between(layers, 0, high, color=GREY, alpha=0.35, lw=0, label=FLOOR)


def mark_phase(axes: Axes, phase: dict) -> None:
    """Mark decision and peak layer, and shade the correction phase if there is one."""
    if phase["exists"]:
        axes.axvspan(phase["peak_layer"], phase["final_layer"], color=PALETTE[4], alpha=0.14, lw=0)
    axes.axvline(phase["decision_layer"], color=GREY, **DECISION)
    if phase["peak_layer"] != phase["decision_layer"]:
        axes.axvline(phase["peak_layer"], color=GREY, **PEAK)


def name_marks(axes: Axes, phase: dict) -> None:
    """Name in the legend what :func:`mark_phase` draws."""
    apart = phase["peak_layer"] != phase["decision_layer"]
    label = "decision layer" if apart else "decision layer and peak of ECE"
    axes.plot([], [], color=GREY, **DECISION, label=label)
    if apart:
        axes.plot([], [], color=GREY, **PEAK, label="peak of ECE")
    if phase["exists"]:
        axes.fill_between([], [], color=PALETTE[4], alpha=0.14, label="correction phase")


def plot_layer_curves(rows: pd.DataFrame, phase: dict, title: str = "") -> Figure:
    """Accuracy, confidence and ECE over the layers, with intervals, chance and null floor.

    Parameters
    ----------
    rows : DataFrame
        Of ``metrics.parquet``, as :func:`layercal.results.select` gives them; so for the others.
    phase : dict
        ``phase.json``.
    title : str
    """
    figure = style.new(8.5, 6.4)
    top, bottom = figure.subplots(2, 1, sharex=True)
    errors = of(rows, "ece")
    band(top, of(rows, "confidence"), CONFIDENCE, "mean confidence")
    band(top, of(rows, "accuracy"), ACCURACY, "accuracy")
    top.axhline(phase["chance"], color=GREY, lw=1, label="chance")
    top.set(ylabel="share of questions, probability", ylim=(0, 1))
    band(bottom, errors, ERROR, "ECE")
    floor(bottom, errors)
    bottom.set(ylabel=f"ECE ({errors['n_bins'].iloc[0]} bins)", xlabel=DEPTH, ylim=(0, None))
    bottom.set_xlim(0, phase["final_layer"])
    for axes in (top, bottom):
        mark_phase(axes, phase)
    name_marks(top, phase)
    for axes in (top, bottom):
        axes.legend(**BESIDE)
    top.set_title(f"{title}  {counted(errors)}".strip())
    return figure


def plot_depth_curves(rows: pd.DataFrame, phase: dict) -> Figure:
    """MCE, option mass and entropy over the layers, with intervals."""
    figure = style.new(8.5, 7.4)
    panels = {
        "mce": ("MCE ({bins} bins)", ERROR),
        "option_mass": ("option mass\n(probability)", PALETTE[2]),
        "entropy": ("entropy over the\nvocabulary (nats)", PALETTE[4]),
    }
    all_axes = figure.subplots(3, 1, sharex=True)
    for axes, (metric, (label, color)) in zip(all_axes, panels.items(), strict=True):
        shown = of(rows, metric)
        band(axes, shown, color, metric.replace("_", " ").replace("mce", "MCE"))
        floor(axes, shown)
        axes.set(ylabel=label.format(bins=shown["n_bins"].iloc[0]), ylim=(0, None))
        mark_phase(axes, phase)
        axes.set_xlim(0, phase["final_layer"])
    all_axes[-1].set_xlabel(DEPTH)
    name_marks(all_axes[0], phase)
    all_axes[0].set_title(counted(of(rows, "mce")))
    all_axes[0].legend(**BESIDE)
    return figure


def plot_lenses(rows: pd.DataFrame, phase: dict) -> Figure:
    """Accuracy and ECE over the layers, through the logit lens and through the tuned lens."""
    figure = style.new(8.5, 5.4)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for lens, color in (("logit", PALETTE[0]), ("tuned", PALETTE[1])):
        of_lens = rows[rows["lens"] == lens]
        for axes, metric in ((top, "accuracy"), (bottom, "ece")):
            band(axes, of(of_lens, metric), color, f"{lens} lens")
        decision = (phase if lens == "logit" else phase["tuned"])["decision_layer"]
        for axes in (top, bottom):
            axes.axvline(decision, color=color, **DECISION)
    errors = of(of_lens, "ece")
    floor(bottom, errors)
    top.axhline(phase["chance"], color=GREY, lw=1, label="chance")
    top.plot([], [], color=GREY, **DECISION, label="decision layer")
    top.set_title(counted(errors))
    top.set(ylabel="accuracy", ylim=(0, 1))
    bottom.set(ylabel=f"ECE ({errors['n_bins'].iloc[0]} bins)", xlabel=DEPTH)
    bottom.set_ylim(0, None)
    bottom.set_xlim(0, phase["final_layer"])
    top.legend(**BESIDE)
    handles, labels = bottom.get_legend_handles_labels()
    bottom.legend(handles[2:], labels[2:], **BESIDE)
    return figure


def plot_letters(
    rows: pd.DataFrame, phase: dict, answers: pd.Series, axes: Axes | None = None
) -> Figure:
    """Share of the predictions that name each option letter, over the layers.

    Parameters
    ----------
    rows : DataFrame
    phase : dict
    answers : Series
        Letter -> share of the right answers.
    axes : Axes, optional
        To draw on; those of a new figure if left out.
    """
    axes = style.panel(axes, 8.5, 3.6)
    for index, (letter, share) in enumerate(answers.items()):
        label = f"{letter} (right answer in {share:.0%})"
        band(axes, of(rows, f"predicted_{letter}"), label=label, **style.look(index))
    mark_phase(axes, phase)
    axes.set(xlabel=DEPTH, ylabel="share of predictions", ylim=(0, 1))
    axes.set_xlim(0, phase["final_layer"])
    axes.legend(title="option letter", loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes.set_title(counted(rows))
    return style.whole(axes)
