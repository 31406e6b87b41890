"""The tables of a report, as they are printed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from layercal.metrics.recalibration import ISOTONIC, NONE, TEMPERATURE, VECTOR
from layercal.report import words
from layercal.results import Results, select
from layercal.steering.verdicts import CHOSEN

DASH = "–"
# what confidence can be a probability among
DEFINED = {"": "among the options", "vocabulary_": "among all tokens"}
MEASURED = {
    "accuracy": "accuracy",
    "confidence": "mean confidence",
    "ece": "ECE",
    "mce": "MCE",
    "mce_min30": "MCE, bins of 30+",
    "nll": "NLL (nats)",
    "brier": "Brier",
    "option_mass": "option mass",
    "entropy": "entropy (nats)",
}


def claims(listed: pd.DataFrame) -> pd.DataFrame:
    """Claims of a report: outcome, measure, value, 95 % interval and n.

    Parameters
    ----------
    listed : DataFrame
        The ``claims`` of ``summary.json``.
    """

    def said(column: str) -> pd.Series:
        return listed[column].astype(float).map("{:+.3f}".format, na_action="ignore").fillna("none")

    applies = listed["outcome"] != "not applicable"
    shown = listed[["claim", "outcome", "measure"]].assign(
        value=said("value").where(applies, DASH),
        interval=(said("ci_low") + " to " + said("ci_high")).where(applies, DASH),
        n=listed["n"],
    )
    return shown.rename(columns={"interval": "95 % CI"})


def claims_latex(listed: pd.DataFrame) -> str:
    """Give the claims as a table for the LaTeX package booktabs."""
    columns = r"p{.3\linewidth}lp{.25\linewidth}rrr"
    return claims(listed).to_latex(index=False, escape=True, column_format=columns)


def key_layers(results: Results) -> pd.DataFrame:
    """Metrics at decision layer, peak and last layer, at all numbers of bins."""
    names = list(MEASURED)
    rows = select(results.metrics, names, every_bins=True)
    rows = rows[rows["layer"].isin(_layers(results.phase))]
    rows = rows.assign(place=rows["metric"].map(names.index))
    rows = rows.sort_values(["layer", "place", "n_bins"]).replace({"metric": MEASURED})
    rows["n_bins"] = rows["n_bins"].astype(object).where(rows["n_bins"] > 0, DASH)
    columns = {
        "layer": "layer",
        "metric": "metric",
        "n_bins": "bins",
        "value": "value",
        "ci_low": "CI low",
        "ci_high": "CI high",
        "null_mean": "null mean",
        "null_high": "null 95th pct",
        "n": "n",
    }
    return rows[list(columns)].rename(columns=columns)


def _layers(phase: dict) -> list[int]:
    return sorted({phase["decision_layer"], phase["peak_layer"], phase["final_layer"]})


def described(directions: pd.DataFrame, primary: str) -> pd.DataFrame:
    """Directions by their cosine with the primary one, and how well the folds agree."""
    by_name = directions.groupby("name", sort=False)
    columns = {
        f"cosine with {primary}": by_name["cosine_primary"].mean(),
        "lowest cosine between folds": by_name["agreement"].min(),
    }
    return pd.DataFrame(columns).rename_axis("direction").reset_index()


def interval(rows: pd.DataFrame, name: str, digits: int = 3) -> pd.Series:
    """The 95 % interval of a column in words."""
    low, high = (rows[f"{name}_{end}"].map(f"{{:+.{digits}f}}".format) for end in ("low", "high"))
    return low + " to " + high


def _share(rows: pd.DataFrame, name: str) -> pd.Series:
    value, low, high = (
        rows[f"share_{name}{end}"].map("{:.0%}".format) for end in ("", "_low", "_high")
    )
    return (value + " (" + low + " to " + high + ")").where(rows[f"share_{name}"].notna(), DASH)


def comparison(rows: pd.DataFrame, kinds: list[str]) -> pd.DataFrame:
    """Verdicts on directions, baselines and controls side by side.

    Parameters
    ----------
    rows : DataFrame
        Of the ``verdicts`` of ``summary.json``.
    kinds : list of str
        In the order in which they are shown.
    """
    change = {
        name: rows[name].map("{:+.3f}".format)
        for name in ("nll_change", "brier_change", "accuracy_change")
    }
    shown = rows.assign(
        **change,
        nll_ci=interval(rows, "nll_change"),
        accuracy_kept=rows["accuracy_kept"].map({True: "yes", False: "not shown"}),
        at_edge=rows["at_edge"].map({True: "yes", False: ""}),
        controls_nll_p=rows["controls_nll_p"].map("{:.3f}".format, na_action="ignore").fillna(DASH),
        share_frozen=_share(rows, "frozen"),
        share_beyond_temperature=_share(rows, "beyond_temperature"),
    )
    shown = shown.sort_values("kind", key=lambda kind: kind.map(kinds.index), kind="stable")
    columns = {
        "direction": "direction",
        "outcome": "outcome",
        "kind": "kind",
        "nll_change": "NLL change",
        "nll_ci": "95 % CI of the NLL change",
        "brier_change": "Brier change",
        "controls_nll_p": "rank p",
        "ece_after": "ECE after",
        "accuracy_change": "accuracy change",
        "accuracy_kept": "kept",
        "share_frozen": "frozen",
        "share_beyond_temperature": "beyond T",
        "at_edge": "edge",
    }
    return shown[list(columns)].rename(columns=columns)


def neurons(table: pd.DataFrame) -> pd.DataFrame:
    """Entropy neurons at their mean, each and together."""
    rows = table[table["what"].ne("random neurons")]
    variance = rows["neuron_cosine_variance"].map("{:.2e}".format, na_action="ignore")
    return pd.DataFrame(
        {
            "at its mean": rows["without"],
            "norm": rows["norm"],
            "ECE change": rows["ece_change"].map("{:+.4f}".format),
            "95 % CI": interval(rows, "ece_change"),
            "confidence change": rows["confidence_change"].map("{:+.4f}".format),
            "accuracy change": rows["accuracy_change"].map("{:+.4f}".format),
            "length of w_out": rows["neuron_norm"],
            "variance of cosines": variance,
        }
    )


def _bounded(rows: pd.DataFrame, form: str = "{:.3f}") -> pd.Series:
    """Value with its interval, a dash where no end is known."""
    value, low, high = (rows[name].map(form.format) for name in ("value", "ci_low", "ci_high"))
    known = np.isfinite(rows["ci_low"]) & np.isfinite(rows["ci_high"])
    return (value + " [" + low + ", " + high + "]").where(known, DASH)


def temperatures(results: Results) -> pd.DataFrame:
    """What recalibration does to each layer from four below the decision layer on."""

    def of(recalibration: str, metric: str) -> pd.DataFrame:
        rows = words.recalibrated(results, recalibration, metric)
        return rows.loc[max(0, results.phase["decision_layer"] - 4) :]

    columns = {
        "T [95 % CI]": _bounded(of(TEMPERATURE, "temperature"), "{:.2f}"),
        "NLL": of(NONE, "nll")["value"],
        "at T": of(TEMPERATURE, "nll")["value"],
        "vector": of(VECTOR, "nll")["value"],
        "ECE": of(NONE, "ece")["value"],
        "at T [95 % CI]": _bounded(of(TEMPERATURE, "ece")),
        "floor": of(TEMPERATURE, "ece")["null_high"],
        "isotonic": of(ISOTONIC, "ece")["value"],
        "scale share [95 % CI]": _bounded(of(TEMPERATURE, "scale_share"), "{:.0%}"),
    }
    shown = pd.DataFrame(columns).rename_axis("layer").reset_index()
    return shown.fillna({"scale share [95 % CI]": DASH})


def phases(results: Results) -> pd.DataFrame:
    """What the rule of the phase says as it is, and once each layer has its temperature."""
    named = {"as it is": results.phase, "a temperature a layer": results.recalibrated_phase}
    return pd.DataFrame(
        {
            "reading": name,
            "outcome": phase["outcome"],
            "peak": phase["peak_layer"],
            "ECE there": phase["ece_peak"],
            "at the last": phase["ece_final"],
            "fall [95 % CI]": _ends(phase["correction"], phase["ci_low"], phase["ci_high"]),
            "trend [95 % CI]": _ends(phase["trend"], phase["trend_low"], phase["trend_high"]),
            "trend p": phase["trend_p"],
            "order p": phase["order_p"],
        }
        for name, phase in named.items()
    )


def group_phases(results: Results) -> pd.DataFrame:
    """What the rule of the phase says of each category, language and reviewed part."""
    rows = results.phases.query("lens == 'logit' and group != 'all'")
    ends = ["correction", "ci_low", "ci_high"]
    return pd.DataFrame(
        {
            "group": rows["group"],
            "n": rows["n"],
            "accuracy": rows["accuracy_final"],
            "outcome": rows["outcome"],
            "peak": rows["peak_layer"],
            "ECE there": rows["ece_peak"],
            "at the last": rows["ece_final"],
            "fall [95 % CI]": [_ends(*row) for row in rows[ends].itertuples(index=False)],
        }
    )


def _ends(value: float, low: float, high: float) -> str:
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def normalisations(results: Results) -> pd.DataFrame:
    """ECE and signed gap by definition of confidence at decision layer, peak and last layer."""
    layers = _layers(results.phase)
    return pd.DataFrame(
        {
            "layer": layers,
            **{
                f"{label}, {name}": _bounded(words.recalibrated(results, NONE, prefix + metric))
                .loc[layers]
                .to_list()
                for metric, label in (("ece", "ECE"), ("signed_gap", "gap"))
                for prefix, name in DEFINED.items()
            },
        }
    )


# metric -> heading, in the order in which readings are judged
JUDGED = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "brier": "Brier",
    "confidence_brier": "Brier of confidence",
    "ece": "ECE",
    "auroc": "AUROC",
    "aurc": "AURC",
    "excess_aurc": "excess AURC",
    "accuracy_at_80%": "accuracy at 80 %",
    "accuracy_at_50%": "at 50 %",
}
HELM = (
    *("ece_10_bin", "ece_1_bin", "platt_ece_10_bin", "platt_ece_1_bin"),
    *("selective_cov_acc_area", "selective_acc@10"),
)


def selective(results: Results) -> pd.DataFrame:
    """Selective prediction before and after steering."""
    names = ["accuracy", "accuracy_at_80%", "accuracy_at_50%", "aurc", "excess_aurc", "auroc"]
    return _judged(_steered(results), {name: JUDGED[name] for name in names}).reset_index()


def helm(results: Results) -> pd.DataFrame:
    """The same readings in HELM's metrics, under its names."""
    return _judged(_steered(results), {name: name for name in HELM}).reset_index()


def rivals(results: Results) -> pd.DataFrame:
    """What a user could do instead, beside what steering leaves at the last layer."""
    rows, steered = results.rivals, _steered(results)
    last = steered[steered["steered"] & steered["mode"].ne("lens")]
    chosen = last["layer_choice"].eq(CHOSEN)
    whole = rows[rows["layer"] < 0].assign(reading=rows["rival"])
    both = pd.concat([whole, last[chosen] if chosen.any() else last])
    shown = _judged(both, JUDGED)
    change = both[both["metric"].eq("confidence_brier_change")].set_index("reading")
    ends = change["ci_low"].map("{:+.3f}".format) + " to " + change["ci_high"].map("{:+.3f}".format)
    shown.insert(4, "its change, 95 % CI", ends.drop("last layer").reindex(shown.index))
    return shown.reset_index().fillna({"its change, 95 % CI": DASH})


def _steered(results: Results) -> pd.DataFrame:
    """Readings before and after steering, named."""
    rows = results.selective
    where = rows["layer"].map("layer {:.0f}".format, na_action="ignore").fillna("layer chosen")
    state = rows["steered"].map({True: "steered", False: "as it is"})
    return rows.assign(reading=rows["mode"] + ", " + where + ": " + state)


def _judged(rows: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Metrics of readings, a row each."""
    known = rows[rows["metric"].isin(columns)].astype({"value": float})
    wide = known.pivot_table("value", "reading", "metric", sort=False, dropna=False)
    return wide.reindex(columns=list(columns)).rename(columns=columns)


def protocol(results: Results) -> pd.DataFrame:
    """The protocol card: what a calibration error rests on, as the files say."""
    errors = select(results.metrics, "ece")
    last = errors[errors["layer"].eq(results.phase["final_layer"])].iloc[0]
    return pd.DataFrame(words.protocol(results, last), columns=["what", "value"])
