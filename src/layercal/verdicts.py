"""What steering amounts to: verdicts with intervals, shares that survive the controls, claims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from layercal import accuracy, baselines, differences, dimensions, readings, resampling
from layercal.directions import FROM
from layercal.evaluation import Sweep, cross_select
from layercal.scoring import MIN_COUNT, WORST, relative_change
from layercal.steering import FROZEN, READ_LAYER

# a layer that is chosen with the scale, on the same questions
SELECTED = "selected"
# changes that claims rest on, each adjusted for all rows of its kind
TESTED = "ece", WORST, "frozen", "beyond_temperature"
LEVEL = 0.05  # of p-values after Holm's correction


def kind(name: str, estimators: Sequence[str]) -> str:
    """Whether a direction is an estimator, a transfer, a control or a baseline.

    Only estimators are candidates for a claim. Each kind is a family of its own in Holm's
    correction.
    """
    if name in baselines.BASELINES:
        return "baseline"
    if FROM in name:
        return "transfer"
    return "estimator" if name in estimators else "control"


def summarise(
    sweep: Sweep, estimators: Sequence[str], above_chance: bool, group: str = "all"
) -> list[dict]:
    """Verdict for each variant, mode and layer, at scales chosen without the scored questions.

    Parameters
    ----------
    sweep : Sweep
    estimators : sequence of str
        Variants that a claim may rest on; the others are controls.
    above_chance : bool
        Whether the model's final accuracy lies above chance; if not, nothing is claimed.
    group : str
        What the questions of the sweep are.

    Returns
    -------
    list of dict
        Baseline and steered ECE, MCE and accuracy, changes with paired 95 % intervals, p-values of
        those in ``TESTED`` and the same adjusted for all rows of the kind (Holm), the null floor of
        the baseline, the scales chosen, the same for the random directions under the same selection
        rule, the gain that is left with the norm frozen and beyond temperature scaling, the outcome
        and a verdict in words. Through the network, one row more leaves the layer, too, to the
        choice; baselines recalibrate the logits that are read.
    """
    rows = []
    for mode in sweep.modes:
        for places in _places(sweep, mode):
            controls = [_random_change(sweep, mode, name, places) for name in sweep.random]
            for name in sweep.variants:
                rows.append(_steered_row(sweep, mode, name, places, controls))
        for place in _read_places(sweep, mode):
            rows += [_baseline_row(sweep, mode, name, place) for name in baselines.BASELINES]
    for row in rows:
        row |= {"group": group, "kind": kind(row["direction"], estimators)}
    for kind_of in dict.fromkeys(row["kind"] for row in rows):
        for change in TESTED:
            _adjust(
                [
                    row
                    for row in rows
                    if row["kind"] == kind_of and row.get(f"{change}_p") is not None
                ],
                change,
            )
    for mode in sweep.modes:
        _set_bar([row for row in rows if row["mode"] == mode and "random_n" in row])
    for row in rows:
        if row["ece_p_holm"] > LEVEL:  # a share of a gain that may not be there means nothing
            row |= dict.fromkeys((name for name in row if name.startswith("share_")), None)
        row["outcome"] = _outcome(row, above_chance)
        row["verdict"] = _verdict(row)
    return rows


def above_chance(sweep: Sweep) -> bool:
    """Whether the unsteered final readings know more than their letters."""
    logits = sweep.unsteered(sweep.modes[0], len(sweep.layers) - 1)
    options = np.isfinite(logits).sum(-1)
    asked = logits.argmax(-1), sweep.answer, options, sweep.cluster
    return accuracy.above_chance(*asked, sweep.draws, sweep.seed).above


def _adjust(rows: list[dict], change: str) -> None:
    for row, p in zip(rows, resampling.holm([row[f"{change}_p"] for row in rows]), strict=True):
        row[f"{change}_p_holm"] = float(p)


def _set_bar(rows: list[dict]) -> None:
    """What beats the random directions: their best change at any layer that has a gain to make.

    Of so many layers, one would otherwise do so by chance.
    """
    open_to_gain = [row for row in rows if row["ece_before"] > row["ece_null_high"]]
    bar = min((row["random_relative_change_best"] for row in open_to_gain), default=0.0)
    for row in rows:
        row["random_relative_change_bar"] = min(bar, row["random_relative_change_best"])


def _places(sweep: Sweep, mode: str) -> Iterator[list[int]]:
    """Layers to choose among: each alone; all where they are read at the same layer."""
    yield from ([place] for place in range(len(sweep.layers)))
    if mode != "lens" and len(sweep.layers) > 1:
        yield list(range(len(sweep.layers)))


def _read_places(sweep: Sweep, mode: str) -> list[int]:
    """Places of distinct layers at which a mode reads."""
    final = len(sweep.norms) - 1
    read_at = [READ_LAYER[mode](layer, final) for layer in sweep.layers]
    return [place for place, layer in enumerate(read_at) if layer not in read_at[:place]]


def _settings(sweep: Sweep, mode: str, name: str, places: list[int]) -> np.ndarray:
    """Logits of all settings to choose among; (K, settings, n, n_options)."""
    steered = sweep.steered(mode, name)[:, places]
    return steered.reshape(len(steered), -1, *steered.shape[3:])


def _choose(
    sweep: Sweep, logits: np.ndarray, places: list[int], among: np.ndarray | None = None
) -> list[int]:
    alphas = list(sweep.alphas) * len(places)
    rule = sweep.fold, alphas, sweep.accuracy_margin, sweep.n_bins, among
    return cross_select(*sweep.read(logits), *rule)


def _scored(sweep: Sweep, logits: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """Logits of each question at what was chosen without its fold; (n, n_options)."""
    found = np.empty(logits.shape[2:])
    for f, setting in enumerate(chosen):
        found[sweep.fold == f] = logits[f, setting, sweep.fold == f]
    return found


def _tempered(sweep: Sweep, logits: np.ndarray, chosen: Sequence[int]) -> np.ndarray:
    """The same after temperature scaling, fitted on the other folds at what was chosen there."""
    found = np.empty(logits.shape[2:])
    for f, setting in enumerate(chosen):
        inside = sweep.fold == f
        one = logits[f, setting].astype(float)
        scale = baselines.temperature(one[~inside], sweep.answer[~inside])
        found[inside] = scale(one[inside])
    return found


def _steered_row(sweep: Sweep, mode: str, name: str, places: list[int], controls) -> dict:
    alone, final = len(places) == 1, len(sweep.norms) - 1
    logits = _settings(sweep, mode, name, places)
    chosen = _choose(sweep, logits, places)
    before, after = sweep.unsteered(mode, places[0]), _scored(sweep, logits, chosen)
    layers = [sweep.layers[places[setting // len(sweep.alphas)]] for setting in chosen]
    found = {
        "direction": name,
        "mode": mode,
        "layer": sweep.layers[places[0]] if alone else SELECTED,
        "layers": layers,
        "read_at": READ_LAYER[mode](sweep.layers[places[0]], final),
        "alphas": [float(sweep.alphas[setting % len(sweep.alphas)]) for setting in chosen],
        **sweep.changes(before, after),
        "random_relative_change_mean": float(np.mean(controls)),
        "random_relative_change_best": float(np.min(controls)),
        "random_n": len(controls),
    }
    frozen = _scored(sweep, _settings(sweep, mode + FROZEN, name, places), chosen)
    start = np.flatnonzero(np.tile(sweep.alphas, len(places)) == 0)[0]
    tempered_before = _tempered(sweep, logits, [start] * len(chosen))
    tempered_after = _tempered(sweep, logits, chosen)
    found |= _change_between(sweep, "frozen", before, frozen)
    found |= _change_between(sweep, "beyond_temperature", tempered_before, tempered_after)
    gain = -found["ece_change"]
    survives = {
        "frozen": -found["frozen_change"],
        "beyond_temperature": -found["beyond_temperature_change"],
        "beyond_random": gain + np.mean(controls) * found["ece_before"],
    }
    share = {f"share_{name}": float(left / gain) for name, left in survives.items() if gain > 0}
    return found | {f"share_{name}": share.get(f"share_{name}") for name in survives}


def _baseline_row(sweep: Sweep, mode: str, name: str, place: int) -> dict:
    before = sweep.unsteered(mode, place)
    after = baselines.cross_apply(baselines.BASELINES[name], before, sweep.answer, sweep.fold)
    layer = READ_LAYER[mode](sweep.layers[place], len(sweep.norms) - 1)
    head = {"direction": name, "mode": mode, "layer": layer, "read_at": layer, "alphas": []}
    return head | sweep.changes(before, after)


def _random_change(sweep: Sweep, mode: str, name: str, places: list[int]) -> float:
    """Relative ECE change of one random direction under the same selection rule."""
    logits = _settings(sweep, mode, name, places)
    after = _scored(sweep, logits, _choose(sweep, logits, places))
    return relative_change(sweep.ece(sweep.unsteered(mode, places[0])), sweep.ece(after))


def _change_between(sweep: Sweep, name: str, before: np.ndarray, after: np.ndarray) -> dict:
    """ECE change between two readings with its paired interval."""
    new, old = (sweep.ece_sample(*sweep.read(side)) for side in (after, before))
    change = differences.error_difference(new, old)
    return {
        f"{name}_change": float(change.value),
        f"{name}_change_low": float(change.low),
        f"{name}_change_high": float(change.high),
        f"{name}_p": change.p,
    }


def _outcome(found: dict, above_chance: bool) -> str:
    """Name of the outcome: nothing is called lowered or raised beyond Holm's level of 0.05."""
    if not above_chance:
        return "at chance, nothing is claimed"
    if found["ece_before"] <= found["ece_null_high"]:
        return "nothing to gain"
    if found["alphas"] and not any(found["alphas"]):
        return "unchanged, no scale helps"
    if found["ece_p_holm"] > LEVEL:
        return "undecided"
    if found["ece_change"] > 0:
        return "raised"
    # a hair of slack, so that an equal change does not count as a better one
    beats = found["ece_relative_change"] < found.get("random_relative_change_bar", np.inf) - 1e-6
    return "lowered" if beats else "lowered, as by random directions"


def _p(value: float) -> str:
    """A p-value in words; far tails are an extrapolation from the resamples."""
    return f"p = {value:.2g}" if value >= 0.001 else "p < 0.001"


def _verdict(found: dict) -> str:
    layer = found["layer"]
    if layer == SELECTED:
        names = ", ".join(map(str, sorted(set(found["layers"]))))
        layer = f"the layer chosen with the scale ({names})"
    else:
        layer = f"layer {layer}"
    where = f"{found['direction']} at {layer}, {found['mode']} (read at layer {found['read_at']})"
    outcome = found["outcome"]
    if outcome == "at chance, nothing is claimed":
        return f"{where}: the model's accuracy is not above chance; nothing is claimed."
    if outcome == "nothing to gain":
        return (
            f"{where}: ECE {found['ece_before']:.3f} already stands at its null floor (a perfectly "
            f"calibrated model shows {found['ece_null_mean']:.3f} on average and up to "
            f"{found['ece_null_high']:.3f} with n = {found['n']}); nothing to gain at this n."
        )
    kept = (
        f"kept within {found['accuracy_margin']}"
        if found["accuracy_kept"]
        else f"not shown to stay within {found['accuracy_margin']}"
    )
    parts = [
        f"{where}: ECE {outcome}, {found['ece_before']:.3f} to {found['ece_after']:.3f} "
        f"({found['ece_relative_change']:+.0%}; change {found['ece_change']:+.3f}, 95 % CI "
        f"{found['ece_change_low']:+.3f} to {found['ece_change_high']:+.3f}, "
        f"{_p(found['ece_p_holm'])} after Holm)"
    ]
    if "random_n" in found:
        parts.append(
            f"random directions {found['random_relative_change_mean']:+.0%} on average, "
            f"{found['random_relative_change_best']:+.0%} at best of {found['random_n']}, "
            f"{found['random_relative_change_bar']:+.0%} at best at any layer"
        )
    if found.get("share_frozen") is not None:
        parts.append(
            f"{found['share_frozen']:.0%} of the gain is left with the norm's scale frozen, "
            f"{found['share_beyond_temperature']:.0%} beyond temperature scaling"
        )
    parts.append(
        f"accuracy changes by {found['accuracy_change']:+.3f} "
        f"({found['accuracy_change_low']:+.3f} to {found['accuracy_change_high']:+.3f}), {kept}"
    )
    return "; ".join(parts) + "."


def transfer(sweep: Sweep, groups: dict[str, np.ndarray], sources: dict[str, str]) -> list[dict]:
    """Score what was fitted on one group of the questions on each of the groups.

    Direction and scale both come from the source: the scale is chosen on its questions outside the
    fold that is scored, so that neither saw a question that it is scored on.

    Parameters
    ----------
    sweep : Sweep
    groups : dict of array of bool, shape (n,)
    sources : dict of str
        Variant -> the group that it was fitted on.

    Returns
    -------
    list of dict
        ``fitted_on``, ``scored_on``, ``mode``, ``layer``, ``n``, ECE and accuracy before and after,
        changes with paired 95 % intervals.
    """
    parts = {target: sweep.take(inside) for target, inside in groups.items()}
    rows = []
    for mode in sweep.modes:
        for place, layer in enumerate(sweep.layers):
            before = sweep.unsteered(mode, place)
            for name, source in sources.items():
                logits = _settings(sweep, mode, name, [place])
                chosen = _choose(sweep, logits, [place], among=groups[source])
                after = _scored(sweep, logits, chosen)
                for target, inside in groups.items():
                    head = {"fitted_on": source, "scored_on": target, "mode": mode, "layer": layer}
                    rows.append(head | parts[target].changes(before[inside], after[inside]))
    return rows


def claims(phase: dict, rows: Sequence[dict], by_rank: pd.DataFrame) -> list[dict]:
    """What a study says of the paper's claims: confirmed, refuted or undecided, with its numbers.

    What is claimed of a direction beyond lowering ECE is decided at one setting, the one at which
    its lowering is surest: no claim may rest on a setting of its own.

    Parameters
    ----------
    phase : dict
        ``phase.json``.
    rows : sequence of dict
        From :func:`summarise`, the primary direction first.
    by_rank : DataFrame
        From :func:`layercal.dimensions.table`.

    Returns
    -------
    list of dict
        ``claim``, ``outcome`` (``confirmed``, ``refuted``, ``undecided``, ``nothing to gain`` or
        ``not applicable``), ``evidence`` in words, and the number that it rests on: ``measure``,
        ``value`` with ``ci_low`` and ``ci_high`` (95 %), and ``n`` questions.
    """
    above_chance = phase["above_chance"]
    primary = [row for row in rows if row["direction"] == rows[0]["direction"]]
    found = [_phase_claim(phase, above_chance)]
    for mode in dict.fromkeys(row["mode"] for row in primary):
        of_mode = [row for row in primary if row["mode"] == mode]
        best = min(of_mode, key=_surest_lowered)
        lowers = _lowers(of_mode) if above_chance else "not applicable"
        decided = {LOWERS: (lowers, "ece", best["verdict"])}
        for text, (change, decide) in FURTHER_CLAIMS.items():
            outcome = decide(best) if lowers == "confirmed" else "not applicable"
            decided[text] = outcome, change, _in_words(best, change)
        for text, (outcome, change, evidence) in decided.items():
            found.append(
                {
                    "claim": f"{best['direction']}, {mode}: {text}",
                    "outcome": outcome,
                    "evidence": evidence,
                    "measure": f"change of {MEASURES[change]}, steered at layer {best['layer']}",
                    "value": best[f"{change}_change"],
                    "ci_low": best[f"{change}_change_low"],
                    "ci_high": best[f"{change}_change_high"],
                    "n": best["n"],
                }
            )
    return [*found, _dimension_claim(by_rank, phase["exists"])]


def _surest_lowered(row: dict) -> tuple:
    """Order of rows: those that are lowered first, by falling certainty."""
    return row["outcome"] != "lowered", row["ece_p_holm"], row["ece_change"]


def _in_words(row: dict, change: str) -> str:
    """A change with its interval and, where it is tested, its p-value."""
    if row[f"{change}_change"] is None:
        return f"{MEASURES[change]} is not measured: no bin is so full."
    p = f", {_p(row[f'{change}_p_holm'])} after Holm" if change in TESTED else ""
    chosen = row["layer"] == SELECTED
    layer = "the layer chosen with the scale" if chosen else f"layer {row['layer']}"
    return (
        f"Steered at {layer}, {MEASURES[change]} changes by {row[f'{change}_change']:+.3f} "
        f"(95 % CI {row[f'{change}_change_low']:+.3f} to {row[f'{change}_change_high']:+.3f}{p})."
    )


def _phase_claim(phase: dict, above_chance: bool) -> dict:
    if not above_chance:
        outcome = "not applicable"
    elif phase["exists"]:
        outcome = "confirmed"
    else:
        outcome = "refuted" if phase["rises"] else "undecided"
    return {
        "claim": "a confidence correction phase exists",
        "outcome": outcome,
        "evidence": phase["reason"],
        "measure": f"fall of ECE, layer {phase['peak_layer']} to {phase['final_layer']}",
        "value": phase["correction"],
        "ci_low": phase["ci_low"],
        "ci_high": phase["ci_high"],
        "n": phase["n"],
    }


def _lowers(rows: list[dict]) -> str:
    outcomes = {row["outcome"] for row in rows}
    if "lowered" in outcomes:
        return "confirmed"
    if outcomes == {"nothing to gain"}:
        return "nothing to gain"
    return "refuted" if outcomes <= {"raised", "lowered, as by random directions"} else "undecided"


def _harmless(row: dict) -> str:
    if row["accuracy_kept"]:
        return "confirmed"
    return "refuted" if row["accuracy_change_high"] < -row["accuracy_margin"] else "undecided"


def _falls(change: str):
    """Whether a further change lies below 0, beyond Holm's level."""

    def decide(row: dict) -> str:
        if row.get(f"{change}_p_holm", 1.0) > LEVEL:
            return "undecided"
        return "confirmed" if row[f"{change}_change"] < 0 else "refuted"

    return change, decide


LOWERS = "it lowers ECE, more than random directions do"
# claim -> the change that it rests on, and how it is decided
FURTHER_CLAIMS = {
    "it lowers MCE too": _falls(WORST),
    "it leaves accuracy within the margin": ("accuracy", _harmless),
    "its gain is there with the norm's scale frozen": _falls("frozen"),
    "it adds to what temperature scaling gains": _falls("beyond_temperature"),
}
MEASURES = {
    "ece": "ECE",
    WORST: f"MCE over bins of at least {MIN_COUNT}",
    "accuracy": "accuracy",
    "frozen": "ECE with the norm's scale frozen",
    "beyond_temperature": "ECE with both sides temperature-scaled",
}


def _dimension_claim(table: pd.DataFrame, exists: bool) -> dict:
    layer = int(table["layer"].min())
    first = table[table["layer"] == layer].iloc[0]
    value, low, high = (
        float(rank) if np.isfinite(rank) else None  # JSON has no infinity
        for rank in first[["rank_90", "rank_90_low", "rank_90_high"]]
    )
    return {
        "claim": "the correction is low-dimensional",
        "outcome": "see the number" if exists else "not applicable",
        "evidence": dimensions.in_words(table, layer),
        "measure": f"dimensions for 90 % of the fall of ECE from layer {layer}",
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": int(first["n"]),
    }


def reliability(sweep: Sweep, name: str, n_bins: int) -> list[dict]:
    """Bins of a reliability diagram, unsteered and steered by a direction.

    Parameters
    ----------
    sweep : Sweep
    name : str
        Of the direction; it is added at the first layer of the sweep, the peak, where it is read
        at the steered layer, else at the layer chosen with the scale.
    n_bins : int

    Returns
    -------
    list of dict
        ``mode``, ``steered`` and the columns of :func:`layercal.readings.reliability`; scales as
        in :func:`summarise`.
    """
    rows = []
    for mode in sweep.modes:
        *_, places = [[0]] if mode == "lens" else _places(sweep, mode)
        logits = _settings(sweep, mode, name, places)
        after = _scored(sweep, logits, _choose(sweep, logits, places))
        for steered, read in ((False, sweep.unsteered(mode, places[0])), (True, after)):
            table = readings.reliability(*sweep.read(read), n_bins)
            rows += table.assign(mode=mode, steered=steered).to_dict("records")
    return rows
