"""The tables of a report, as they are printed."""

from __future__ import annotations

import pandas as pd

from layercal.results import Results, select

DASH = "–"
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
    phase, names = results.phase, list(MEASURED)
    layers = {phase["decision_layer"], phase["peak_layer"], phase["final_layer"]}
    rows = select(results.metrics, names, every_bins=True)
    rows = rows[rows["layer"].isin(layers)]
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
