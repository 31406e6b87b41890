"""What a report says in sentences."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
import pandas as pd

from layercal.metrics.recalibration import KNOWLEDGE, SCALE, TEMPERATURE
from layercal.results import Results

PART_NAMES = {"attention": "attention", "mlp": "MLP"}
# settings and packages of which the stages' records say how tables were made
RECORDED = ("commit", "processor", "gpu", "dtype", "device", "seed", "python")


def what_was_run(results: Results) -> list[str]:
    """Questions, shots and the model, with where it comes from."""
    prompts, manifest = results.prompts, results.manifest
    left_out = (~results.rejected["kept"]).sum()
    shots = prompts["n_shots"]
    fewer = (shots < shots.max()).sum()
    return [
        f"{prompts['question_id'].nunique()} questions in {prompts['subject'].nunique()} subjects, "
        f"{shots.max() or 'zero'}-shot{f' ({fewer} with fewer)' if fewer else ''}, "
        f"{prompts['n_tokens'].mean():.0f} tokens on average; {left_out} question(s) of the "
        "source left out because their options or answer cannot be read.",
        f"Model: {manifest['source'].get('description', results.model)}, "
        f"{_origin(manifest['source'])}, {_blocks(manifest['source'])}licence "
        f"{manifest['licence']}; "
        f"{results.phase['final_layer']} blocks.",
    ]


def _blocks(source: dict) -> str:
    return f"blocks in {source['quantize']}, " if "quantize" in source else ""


def _origin(source: dict) -> str:
    if "hub" in source:
        said = f"{source['hub']['repo']} at {source['hub']['revision'][:12]}…"
    else:
        said = source.get("folder") or source.get("gguf") or source["file"]
    return said + (f" (sha256 {source['sha256'][:12]}…)" if "sha256" in source else "")


def how_it_was_made(results: Results) -> list[str]:
    """Commit, hardware and packages, as the stages recorded them beside the tables.

    A pulled working copy has no such records.
    """
    folders = {results.path(name).parent for name in ("prompts", "metrics", "directions", "sweep")}
    values: dict[str, set[str]] = {name: set() for name in RECORDED}
    for folder in sorted(folders):
        for path in folder.glob("*.provenance.json"):
            record = json.loads(path.read_text())
            packages = record["packages"]
            for name, value in {**record["settings"], **record, **packages}.items():
                if name in values or name in packages:
                    values.setdefault(name, set()).add(str(value))
    return [f"{name}: {', '.join(sorted(said))}" for name, said in values.items() if said]


def claims(listed: pd.DataFrame) -> list[str]:
    """Evidence of each claim that applies."""
    return list(dict.fromkeys(listed.loc[listed["outcome"] != "not applicable", "evidence"]))


def random_neurons(table: pd.DataFrame) -> str:
    """What random sets of neurons do to ECE."""
    random = table[table["what"].eq("random neurons") & table["norm"].eq("live")]
    change = random["ece_change"]
    return (
        f"{len(random)} random sets of as many neurons change ECE by "
        f"{change.min():+.4f} to {change.max():+.4f} (norm live)."
    )


def correction(results: Results) -> str:
    """What the correction is: how much of it is scale, and whether a phase is left."""
    if results.phase["outcome"] == "at chance":
        return "As asked here the model is at chance, so there is no correction to take apart."
    return " ".join((temperatures(results), steps(results), phase_left(results)))


def mechanism(results: Results) -> str:
    """What the correction is made by: attention, MLP, and the norm's scale."""
    if results.phase["outcome"] == "at chance":
        return ""
    return f"{halves(results)} {norm(results)}"


def temperatures(results: Results) -> str:
    """Temperatures at peak and end, and which share of the peak's excess of NLL is scale."""
    phase = results.phase
    peak, final = phase["peak_layer"], phase["final_layer"]
    said = f"Layer {peak}, the peak of ECE, {_temperature(results, peak)}"
    if peak == final:
        return f"{said}; it is the last."
    share = recalibrated(results, TEMPERATURE, "scale_share").loc[peak]
    if not np.isfinite(share["ci_low"]):
        shared = f"whether its NLL lies above that of layer {final} is open, and so what is scale"
    else:
        ends = f"95 % CI {share['ci_low']:.0%} to {share['ci_high']:.0%}"
        shared = (
            f"of what its NLL lies above that of layer {final}, {share['value']:.0%} ({ends}) "
            "is scale, which temperatures take away"
        )
    return f"{said}, the last {_temperature(results, final)}; {shared}."


def steps(results: Results) -> str:
    """Which layers add knowledge, which from the peak on only change the scale."""
    sure = {
        name: recalibrated(results, TEMPERATURE, metric).query("ci_low > 0").index
        for name, metric in (("knowledge", KNOWLEDGE), ("scale", SCALE))
    }
    late = [layer for layer in sure["scale"] if layer > results.phase["peak_layer"]]
    known, scaled = (", ".join(map(str, one)) or "none" for one in (sure["knowledge"], late))
    return (
        f"Layers shown to add knowledge (lower NLL, both at their temperatures): {known}; "
        f"above the peak, layers shown to better the scale: {scaled}."
    )


def halves(results: Results) -> str:
    """What attention and MLP of the blocks above the peak bring, by scale and by knowledge."""
    table = results.steps
    if not len(table):
        return "Its blocks have no stream between attention and MLP that could be read."
    totals = table[table["first_block"] < table["last_block"]]
    if not len(totals):
        return "Above the peak is one block at most."
    said = [
        f"by {name} {_by_part(totals[totals['metric'].eq(metric)])}"
        for name, metric in (("scale", SCALE), ("knowledge", KNOWLEDGE))
    ]
    blocks = f"{totals['first_block'].iloc[0]:.0f} to {totals['last_block'].iloc[0]:.0f}"
    return f"In blocks {blocks} NLL falls (95 % CI) {'; '.join(said)}."


def _by_part(rows: pd.DataFrame) -> str:
    return " and ".join(
        f"{row.value:.3f} ({row.ci_low:.3f} to {row.ci_high:.3f}) by {PART_NAMES[str(row.part)]}"
        for row in rows.itertuples()
    )


def norm(results: Results) -> str:
    """How much of the peak's excess of NLL the last layer's norm alone takes away."""
    peak, final = results.phase["peak_layer"], results.phase["final_layer"]
    table = results.norm
    if peak == final:
        return "The peak is the last layer, whose norm is its own."
    at = table[table["layer"].eq(peak)].set_index("norm_layer")
    before, patched, last = at.loc[peak], at.loc[final], table["ece"].iloc[-1]
    if np.isfinite(patched["share_low"]):
        ends = f"95 % CI {patched['share_low']:.0%} to {patched['share_high']:.0%}"
        shared = f"{patched['share']:.0%} ({ends}) of its excess of NLL"
    else:
        shared = "a share of its excess of NLL that is open"
    return (
        f"Layer {peak} read with the norm's scale of layer {final} loses {shared}; its ECE goes "
        f"from {before['ece']:.3f} to {patched['ece']:.3f} (layer {final}: {last:.3f})."
    )


def phase_left(results: Results) -> str:
    """Whether the rule of the phase finds one once each layer has its temperature."""
    before, left = results.phase, results.recalibrated_phase
    fall = f"a fall of {left['correction']:.3f} ({left['ci_low']:.3f} to {left['ci_high']:.3f})"
    if before["outcome"] != "exists":
        return f"No phase was shown as it is ({before['outcome']}), so none is taken away."
    outcome = {"exists": "a phase is left", "no phase": "no phase is left, ECE rises"}
    said = outcome.get(left["outcome"], f"no phase is shown any more ({left['outcome']})")
    return (
        f"With a temperature for each layer, fitted on other questions, {said}: ECE goes from "
        f"{left['ece_peak']:.3f} at layer {left['peak_layer']} to {left['ece_final']:.3f}, {fall}, "
        f"where it fell by {before['correction']:.3f} as it is."
    )


def recalibrated(results: Results, recalibration: str, metric: str) -> pd.DataFrame:
    """Rows of ``recalibration.parquet`` of one metric, indexed by layer."""
    rows = results.recalibration
    kept = rows["recalibration"].eq(recalibration) & rows["metric"].eq(metric)
    return rows[kept].set_index("layer").sort_index()


def _temperature(results: Results, layer: int) -> str:
    row = recalibrated(results, TEMPERATURE, "temperature").loc[layer]
    if not np.isfinite(row["ci_high"]):
        return "has no temperature that fits"
    return f"fits at T = {row['value']:.2f} (95 % CI {row['ci_low']:.2f} to {row['ci_high']:.2f})"


def protocol(results: Results, last: pd.Series) -> list[tuple[str, str]]:
    """What a calibration error rests on, from what the files say.

    Parameters
    ----------
    results : Results
    last : Series
        Row of ``metrics.parquet``: ECE at the last layer.
    """
    prompts, bins = results.prompts, int(last["n_bins"])
    counts = sorted({len(ids) for ids in prompts["option_ids"]})
    tokens = sorted({tuple(map(int, ids)) for ids in prompts["option_ids"]})
    mass = results.options.groupby("layer")["option_mass"].mean().iloc[-1]
    return [
        ("bins", f"{bins}, of equal width"),
        ("edges, the upper one inside", _listed(f"{e:g}" for e in np.linspace(0, 1, bins + 1))),
        ("confidence", "largest option probability"),
        ("normalisation", f"softmax over the question's own options ({_listed(counts)})"),
        ("mass of the options among all tokens, last layer", f"{mass:.3f}"),
        ("n", f"{last['n']} questions, {len(prompts)} prompts"),
        ("ECE at the last layer", f"{last['value']:.3f}"),
        ("its null floor, 95th percentile", f"{last['null_high']:.3f}"),
        ("letter tokens (ids)", "; ".join(map(_listed, tokens))),
        ("option order", f"{results.phase['order']}, {prompts['permutation'].nunique()} read"),
        ("shots", _listed(sorted(prompts["n_shots"].unique()))),
        ("prompts (sha256)", results.run.fingerprint),
        ("model (sha256)", _listed(sorted(prompts["model_sha256"].unique()))),
        ("dtype", _recorded_dtype(results)),
    ]


def _listed(values: Iterable) -> str:
    return ", ".join(map(str, values))


def _recorded_dtype(results: Results) -> str:
    folder = results.path("prompts").parent
    records = [json.loads(path.read_text()) for path in folder.glob("residuals-*.provenance.json")]
    said = {record["dtype"] for record in records if "dtype" in record}
    return _listed(sorted(said)) or "not recorded in this working copy"
