"""The figures of one report, each with the data that it shows and a text for who cannot see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
from matplotlib.figure import Figure

from layercal import results
from layercal.metrics import readings
from layercal.report import figures
from layercal.sources.questions import LETTERS
from layercal.steering import dimensions
from layercal.steering.tally import ALL_CONTROLS

# the result files that figures are drawn from
TABLES = (
    "prompts",
    "options",
    "metrics",
    "phase",
    "directions",
    "dimensions",
    "nullspace",
    "neurons",
    "sweep",
    "summary",
)


@dataclass
class Plate:
    """A figure, the rows that it shows, and what it shows in words (its alt text)."""

    figure: Figure
    data: pd.DataFrame
    alt: str


def load(**paths: str | Path) -> SimpleNamespace:
    """Read result files by name: tables from parquet and CSV, objects from JSON.

    Parameters
    ----------
    **paths : str or Path
        Those in ``TABLES``, and what else a report wants.

    Raises
    ------
    InputError
        If those in ``TABLES`` are of different runs.
    """
    files = {name: Path(path) for name, path in paths.items()}
    run = results.Run.load(files["prompts"])
    run.check(*(files[name] for name in TABLES if name != "prompts"))
    own = {"prompts": run.prompts, "options": run.by_prompt(files["options"])}
    return SimpleNamespace(
        **own, **{name: results.read(path) for name, path in files.items() if name not in own}
    )


def draw(name: str, tables: SimpleNamespace) -> Plate:
    """Draw one figure of a report; one that says why, where there is nothing to show.

    Parameters
    ----------
    name : str
        Of ``PLATES``.
    tables : SimpleNamespace
        From :func:`load`, those in ``TABLES``.
    """
    found = PLATES[name](tables)
    if isinstance(found, str):
        return Plate(figures.nothing(found), pd.DataFrame({"nothing to show": [found]}), found)
    return found


def claims(summary: dict) -> pd.DataFrame:
    """Claims as they are printed: outcome, measure, value, 95 % interval and n.

    Parameters
    ----------
    summary : dict
        ``summary.json``.
    """
    rows = []
    for claim in summary["claims"]:
        value, low, high = (
            "none" if claim[end] is None else f"{claim[end]:+.3f}"
            for end in ("value", "ci_low", "ci_high")
        )
        applies = claim["outcome"] != "not applicable"
        rows.append(
            {
                "claim": claim["claim"],
                "outcome": claim["outcome"],
                "measure": claim["measure"],
                "value": value if applies else "–",
                "95 % CI": f"{low} to {high}" if applies else "–",
                "n": claim["n"],
            }
        )
    return pd.DataFrame(rows)


def _rows(metrics: pd.DataFrame, order: str, names: list[str], groups=("all",)) -> pd.DataFrame:
    """Rows of some metrics at the primary number of bins."""
    parts = [results.select(metrics, names, groups, lens, order) for lens in ("logit", "tuned")]
    columns = ["group", "lens", "metric", "n_bins", "layer", "value", "ci_low", "ci_high"]
    return pd.concat(parts)[[*columns, "null_mean", "null_high", "n"]]


def _logit(t, names: list[str], groups=("all",)) -> pd.DataFrame:
    rows = _rows(t.metrics, t.phase["order"], names, groups)
    return rows[rows["lens"] == "logit"]


def _at(rows: pd.DataFrame, metric: str, layer: int) -> float:
    return rows.loc[(rows["metric"] == metric) & (rows["layer"] == layer), "value"].iloc[0]


def _over_depth(rows: pd.DataFrame, names: dict[str, str], phase: dict) -> str:
    """Values at decision layer, peak and last layer, in words."""
    layers = sorted({phase["decision_layer"], phase["peak_layer"], phase["final_layer"]})
    said = [
        f"{label} is {', '.join(f'{_at(rows, metric, one):.2f}' for one in layers)}"
        for metric, label in names.items()
    ]
    return f"At layers {', '.join(map(str, layers))}: {'; '.join(said)}."


def _curves(names: dict[str, str], drawn: Callable) -> Callable:
    *but_last, last = names.values()
    shown = f"{', '.join(but_last)} and {last.removesuffix(' in nats')}"

    def plate(t) -> Plate:
        rows = _logit(t, list(names))
        alt = f"Curves of {shown} over the layers, with 95 % bands. "
        return Plate(drawn(t.metrics, t.phase), rows, alt + _over_depth(rows, names, t.phase))

    return plate


def _lenses(t) -> Plate:
    rows = _rows(t.metrics, t.phase["order"], ["accuracy", "ece"])
    alt = (
        "Accuracy and ECE over the layers through the logit lens and the tuned lens. Accuracy has "
        f"settled from layer {t.phase['decision_layer']} on in the logit lens, from layer "
        f"{t.phase['tuned']['decision_layer']} on in the tuned lens."
    )
    return Plate(figures.lenses(t.metrics, t.phase), rows, alt)


def _letters(t) -> Plate:
    letters = LETTERS[: max(map(len, t.prompts["option_ids"]))]
    counts = t.prompts["answer"].value_counts(normalize=True)
    answers = pd.Series({one: counts.get(place, 0.0) for place, one in enumerate(letters)})
    # with all rotations, letters are those of the options as they were shown
    order = next(o for o in t.metrics["order"].unique() if o != "averaged")
    names = [f"predicted_{letter}" for letter in answers.index]
    rows = _rows(t.metrics, order, names)
    rows = rows[rows["lens"] == "logit"]
    top = rows[rows["layer"] == t.phase["peak_layer"]].nlargest(1, "value").iloc[0]
    alt = (
        "Share of predictions that name each option letter, over the layers. At the peak of ECE, "
        f"layer {t.phase['peak_layer']}, {top['metric'][-1]} is named most, in {top['value']:.0%}; "
        f"it is right in {answers[top['metric'][-1]]:.0%}."
    )
    return Plate(figures.letters(rows, t.phase, answers), rows, alt)


def _groups(kind: str) -> Callable:
    def plate(t) -> Plate | str:
        groups = figures.measured(t.metrics, kind)
        if kind == "language" and len(set(t.prompts["language"])) == 1:
            return "All questions are in one language."
        if not groups:
            return f"No {kind} holds enough questions to be measured."
        rows = _logit(t, ["accuracy", "ece"], groups)
        last = rows[(rows["layer"] == t.phase["final_layer"]) & (rows["metric"] == "ece")]
        said = ", ".join(f"{r.group.partition(':')[2]} {r.value:.2f}" for r in last.itertuples())
        alt = f"Accuracy and ECE over the layers, by {kind}. ECE at the last layer: {said}."
        return Plate(figures.group_curves(t.metrics, kind), rows, alt)

    return plate


def _category_map(t) -> Plate | str:
    groups = figures.measured(t.metrics, "category")
    if not groups:
        return "No category holds enough questions to be measured."
    rows = _logit(t, ["accuracy", "ece"], groups)
    worst = rows[rows["metric"] == "ece"].nlargest(1, "value").iloc[0]
    alt = (
        "Heat maps of accuracy and ECE, layer by category. ECE is largest for "
        f"{worst['group'].partition(':')[2]} at layer {worst['layer']}, {worst['value']:.2f}."
    )
    return Plate(figures.group_map(rows, t.phase), rows, alt)


def _subject_map(t) -> Plate | str:
    """Accuracy and signed gap: means, which few questions make noisy but, unlike ECE, not large."""
    asked = t.prompts.drop_duplicates("question_id")
    if len(set(asked["subject"])) == 1:
        return "All questions are of one subject."
    read = next(iter(readings.from_options(t.options).values()))
    values = {"accuracy": read.correct.T * 1.0, "signed_gap": (read.confidence - read.correct).T}
    subjects = asked["subject"].to_numpy()
    counts = asked["subject"].value_counts()
    ordered = asked.sort_values(["category", "subject"])["subject"].unique()
    tables = [
        pd.DataFrame(value)
        .groupby(subjects)
        .mean()
        .loc[ordered]
        .rename_axis("group")
        .reset_index()
        .melt("group", var_name="layer")
        .assign(metric=metric)
        for metric, value in values.items()
    ]
    rows = pd.concat(tables, ignore_index=True)
    rows["n"] = rows["group"].map(counts)
    rows["group"] = "subject:" + rows["group"]
    alt = (
        f"Heat maps of accuracy and of mean confidence minus accuracy, layer by subject: "
        f"{len(ordered)} subjects of {counts.min()} to {counts.max()} questions each."
    )
    columns = ["group", "n", "layer", "metric", "value"]
    return Plate(figures.group_map(rows[columns], t.phase), rows[columns], alt)


def _reliability(t) -> Plate:
    n_bins, parts = results.primary_bins(t.metrics), []
    read = next(iter(readings.from_options(t.options).values()))
    marked = {"decision": "decision_layer", "peak of ECE": "peak_layer", "last": "final_layer"}
    names: dict[int, list[str]] = {}
    for label, key in marked.items():
        names.setdefault(t.phase[key], []).append(label)
    for layer, labels in names.items():
        bins = readings.reliability(read.confidence[layer], read.correct[layer], n_bins)
        parts.append(bins.assign(reading=f"layer {layer}\n({', '.join(labels)})", state="as is"))
    for mode, one in pd.DataFrame(t.summary["reliability"]).groupby("mode", sort=False):
        state = one["steered"].map({False: "as is", True: "steered"})
        where = "at the peak" if mode == "lens" else "layer chosen"
        parts.append(one.drop(columns="steered").assign(reading=f"{mode}\n({where})", state=state))
    rows = pd.concat(parts, ignore_index=True)
    gap = (rows["accuracy"] - rows["confidence"]).abs() * rows["n"]
    key = [rows["reading"], rows["state"]]
    errors = gap.groupby(key, sort=False).sum() / rows["n"].groupby(key, sort=False).sum()
    said = "; ".join(
        f"{' '.join(reading.split())}, {state}: {value:.2f}"
        for (reading, state), value in errors.items()
    )
    alt = f"Reliability diagrams, accuracy over confidence by bin. ECE: {said}."
    return Plate(figures.reliability(rows), rows, alt)


def _cosines(t) -> Plate:
    rows = figures.cosines_everywhere(t.directions)
    one = rows[rows["name"] == rows["name"].iloc[0]].groupby("layer")["cosine"].mean()
    alt = (
        "Mean cosine of directions with the block update into each layer. For "
        f"{rows['name'].iloc[0]} it is largest at layer {one.idxmax()}, {one.max():.2f}."
    )
    return Plate(figures.direction_cosines(t.directions), rows, alt)


def _dimensions(t) -> Plate | str:
    layer = t.dimensions["layer"].min()
    if t.dimensions["explained"].isna().all():
        return f"From layer {layer}, the peak of ECE, to the last layer nothing changes."
    alt = (
        "Spectrum of the change to the last layer, and NLL and accuracy once it is put in, by "
        f"dimensions. {dimensions.in_words(t.dimensions, layer)}"
    )
    drawn = t.dimensions[t.dimensions["source"] != dimensions.OTHERS]
    return Plate(figures.dimensions(drawn), t.dimensions, alt)


def _dose(mode: str) -> Callable:
    def plate(t) -> Plate | str:
        rows = t.sweep[t.sweep["mode"] == mode]
        if not len(rows):
            return f"Mode {mode} was not part of this study."
        primary = rows["direction"].iloc[0]
        asked = [primary, "phase-mean", "gradient", "probe", f"{primary} (subtract)"]
        drawn = [name for name in dict.fromkeys(asked) if name in set(rows["direction"])]
        kept = rows["metric"].isin(figures.DOSED)
        kept &= rows["direction"].isin([*drawn, ALL_CONTROLS])
        of = rows[(rows["direction"] == primary) & (rows["metric"] == "nll")]
        layer = of["layer"].min()
        at = of[of["layer"] == layer].set_index("alpha")["value"]
        alt = (
            f"NLL, ECE and accuracy over the scale alpha, mode {mode}, matched controls as a grey "
            f"band. {primary} at layer {layer}: NLL {at[0]:.2f} unsteered, lowest at alpha "
            f"{at.idxmin():g}, {at.min():.2f}."
        )
        return Plate(figures.dose_response(t.sweep, mode, drawn, ALL_CONTROLS), rows[kept], alt)

    return plate


def _transfer(t) -> Plate | str:
    rows = pd.DataFrame(t.summary["transfer"])
    if not len(rows) or rows["scored_on"].nunique() < 2:
        return "Too few categories hold enough questions to fit a direction on."
    rows = rows[rows["layer"] == rows["layer"].min()]
    change = rows["nll_change"]
    alt = (
        "Change of NLL by category that the direction was fitted on and category scored, "
        f"from {change.min():+.2f} to {change.max():+.2f} nats."
    )
    return Plate(figures.transfer_matrix(rows), rows, alt)


def _null_space(t) -> Plate:
    first = t.nullspace[t.nullspace["rule"] == t.nullspace["rule"].iloc[0]]
    last = first[first["layer"] == first["layer"].max()].set_index("what")["share"]
    alt = (
        "Share of the stream and of block updates in the null space, over the layers. By rule "
        f"{first['rule'].iloc[0]} it is {last['residual']:.1%} of the stream and "
        f"{last['update']:.1%} of the update at the last layer."
    )
    return Plate(figures.null_space(t.nullspace), t.nullspace, alt)


def _neurons(t) -> Plate | str:
    if not len(t.neurons):
        return "The neurons of this model's last MLP cannot be told."
    together = t.neurons[t.neurons["without"].str.startswith("all ") & t.neurons["norm"].eq("live")]
    one = together.iloc[0]
    alt = (
        "Change of ECE with each entropy neuron at its mean, against random sets of neurons. "
        f"{one['without']} together: {one['ece_change']:+.3f} "
        f"(95 % CI {one['ece_change_low']:+.3f} to {one['ece_change_high']:+.3f})."
    )
    return Plate(figures.entropy_neurons(t.neurons), t.neurons, alt)


def _attribution(t) -> Plate | str:
    rows = pd.DataFrame(t.summary["attribution"])
    if not len(rows):
        return "What this model's attention and MLP write cannot be told apart."
    most = rows.loc[rows["ece_change"].abs().idxmax()]
    alt = (
        "Change of ECE and accuracy without attention or MLP of each block. ECE changes most "
        f"without {most['without']}: {most['ece_change']:+.3f} (95 % CI "
        f"{most['ece_change_low']:+.3f} to {most['ece_change_high']:+.3f})."
    )
    return Plate(figures.ablations(rows), rows, alt)


PLATES: dict[str, Callable[[SimpleNamespace], Plate | str]] = {
    "layer-curves": _curves(
        {"accuracy": "accuracy", "confidence": "mean confidence", "ece": "ECE"},
        figures.layer_curves,
    ),
    "depth-curves": _curves(
        {"mce": "MCE", "option_mass": "option mass", "entropy": "entropy in nats"},
        figures.depth_curves,
    ),
    "reliability": _reliability,
    "letters": _letters,
    "lenses": _lenses,
    "categories": _groups("category"),
    "languages": _groups("language"),
    "category-map": _category_map,
    "subject-map": _subject_map,
    "cosines": _cosines,
    "dimensions": _dimensions,
    "dose-lens": _dose("lens"),
    "dose-network": _dose("through-network"),
    "dose-everywhere": _dose("all-positions"),
    "transfer": _transfer,
    "null-space": _null_space,
    "neurons": _neurons,
    "attribution": _attribution,
}
