"""What steering amounts to at each setting: changes with intervals, shares, ranks, an outcome."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from layercal.metrics import accuracy, paired, readings, resampling
from layercal.metrics.readings import Group
from layercal.steering import baselines
from layercal.steering.evaluation import GROWTH_TEMPERATURE, Sweep
from layercal.steering.fitted import BASELINE, Direction
from layercal.steering.steered import MODES
from layercal.steering.tally import rank_p

# a layer that is named beforehand, or chosen with the scale, on the same questions (then each fold
# has its own)
FIXED, CHOSEN, SELECTED = "fixed", "chosen", "selected"
LEVEL = 0.05  # of p-values after Holm's correction
AT_CHANCE = "at chance, nothing is claimed"


def summarise(
    parts: dict[Group, tuple[Sweep, bool]],
    nll_margin: float = 0.01,
    accuracy_level: float = 0.95,
    pairs: int = 1,
) -> list[dict]:
    """Verdict for each variant, mode and layer, at scales chosen without the scored questions.

    Parameters
    ----------
    parts : dict of (Sweep, bool)
        All questions, and each language where there are several, with whether the model's final
        accuracy lies above chance there; if not, nothing is claimed.
    nll_margin : float
        Changes of NLL within it are none, in nats.
    accuracy_level : float
        Of the interval of the change of accuracy that claims rest on.
    pairs : int
        Models by question sets of the study, which the p-values allow for.

    Returns
    -------
    list of dict
        The fields of the group and of the direction, or ``direction`` and ``kind`` of a baseline;
        ``layer`` and ``layer_choice`` (``fixed``, or ``chosen`` with the scale); NLL, Brier, ECE,
        MCE and accuracy before and after, changes with paired 95 % intervals; the p-value of the
        change of NLL, which decides the outcome, and the same adjusted for all rows of the kind
        (Holm) and all pairs (Bonferroni); the null floor and the interval of ECE before; the scales
        chosen and whether one lies at the edge of the grid; rank and range of the matched controls
        under the same selection rule; what is left with the norm frozen, beyond temperature scaling
        and beyond the temperature of the primary direction's growth, and as shares of the gain with
        95 % intervals; the outcome and a verdict in words.
        Through the network, one row more leaves the layer, too, to the choice; baselines
        recalibrate the logits that are read.
    """
    rows = []
    for group, (sweep, _) in parts.items():
        for mode in sweep.modes:
            for row in (*_steered_rows(sweep, mode, accuracy_level), *_baseline_rows(sweep, mode)):
                rows.append({**group.columns(), **row, "nll_margin": nll_margin})
    _adjust(rows, pairs)
    known = {str(group): above for group, (_, above) in parts.items()}
    for row in rows:
        row["outcome"] = _outcome(row, above_chance=known[row["group"]])
        row["verdict"] = _verdict(row)
    return rows


def _adjust(rows: Sequence[dict], pairs: int) -> None:
    """Adjust the p-values of the change of NLL for all rows of a kind and all pairs, in place.

    A share of a gain that may not be there means nothing, and is taken out.
    """
    for kind_of in dict.fromkeys(row["kind"] for row in rows):
        family = [row for row in rows if row["kind"] == kind_of]
        for row, p in zip(family, resampling.holm([r["nll_p"] for r in family]), strict=True):
            row["nll_p_holm"] = min(1.0, pairs * float(p))
    for row in rows:
        if row["nll_p_holm"] > LEVEL or row["nll_change"] >= 0:
            row |= dict.fromkeys((name for name in row if name.startswith("share_")), None)


def above_chance(sweep: Sweep) -> bool:
    """Whether the unsteered final readings know more than their letters."""
    logits = sweep.unsteered(sweep.modes[0], len(sweep.layers) - 1)
    options = np.isfinite(logits).sum(-1)
    return accuracy.above_chance(
        logits.argmax(-1),
        sweep.answer,
        n_options=options,
        cluster=sweep.cluster,
        draws=sweep.draws,
        seed=sweep.seed,
    ).above


def layer_choices(sweep: Sweep, mode: str) -> Iterator[list[int]]:
    """Places of layers to choose among: each alone, and all where they are read at one layer."""
    yield from ([place] for place in range(len(sweep.layers)))
    if mode != "lens" and len(sweep.layers) > 1:
        yield list(range(len(sweep.layers)))


def _read_places(sweep: Sweep, mode: str) -> list[int]:
    """Places of distinct layers at which a mode reads."""
    final = len(sweep.norms) - 1
    read_at = [MODES[mode].read(layer, final) for layer in sweep.layers]
    return [place for place, layer in enumerate(read_at) if layer not in read_at[:place]]


def _choices(sweep: Sweep, places: Sequence[int], chosen: Sequence[int]) -> dict:
    """Layers and scales chosen, one a fold, and whether one lies at the end of the grid."""
    alphas = [float(sweep.alphas[setting % len(sweep.alphas)]) for setting in chosen]
    ends = {alpha for alpha in (min(sweep.alphas), max(sweep.alphas)) if alpha}
    return {
        "layers": [sweep.layers[places[setting // len(sweep.alphas)]] for setting in chosen],
        "alphas": alphas,
        "at_edge": bool(ends & set(alphas)),
    }


def _steered_rows(sweep: Sweep, mode: str, accuracy_level: float) -> Iterator[dict]:
    """Each variant at each layer, beside the controls there."""
    for places in layer_choices(sweep, mode):
        of_controls = sweep.controls.changes(mode, places)
        grown, _ = _grown(sweep, mode, places)
        for direction in sweep.done(mode):
            row = _steered_row(sweep, mode, direction, places, grown, accuracy_level)
            yield row | against_controls(row, of_controls)


def _grown(sweep: Sweep, mode: str, places: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """Logits (n, n_options) at the temperature of equal growth, and the settings chosen for it."""
    logits = sweep.settings(sweep.grown(mode), places)
    chosen = sweep.choose(logits)
    return sweep.scored(logits, chosen), chosen


def _steered_row(
    sweep: Sweep,
    mode: str,
    direction: Direction,
    places: Sequence[int],
    grown: np.ndarray,
    accuracy_level: float,
) -> dict:
    logits = sweep.settings(sweep.by_fold(mode, direction), places)
    chosen = sweep.choose(logits)
    before, after = sweep.unsteered(mode, places[0]), sweep.scored(logits, chosen)
    low, high = sweep.accuracy_interval(before, after, accuracy_level)
    head = {
        **direction.columns(),
        "mode": mode,
        "layer": sweep.layers[places[0]] if len(places) == 1 else SELECTED,
        "layer_choice": FIXED if len(places) == 1 else CHOSEN,
        "read_at": MODES[mode].read(sweep.layers[places[0]], len(sweep.norms) - 1),
        **_choices(sweep, places, chosen),
    }
    row = head | sweep.changes(before, after)
    row |= {"accuracy_claim_low": low, "accuracy_claim_high": high}
    start = int(np.flatnonzero(np.tile(sweep.alphas, len(places)) == 0)[0])
    tempered = sweep.tempered(logits, [start] * len(chosen)), sweep.tempered(logits, chosen)
    del logits  # before others of their size are read
    frozen = sweep.settings(sweep.by_fold(mode, direction, frozen=True), places)
    pairs = {
        "frozen": (before, sweep.scored(frozen, chosen)),
        "beyond_temperature": tempered,
    }
    pairs["instead_of_temperature"] = pairs["beyond_temperature"][0], after
    pairs["beyond_growth"] = grown, after
    for label, pair in pairs.items():
        row |= sweep.compare(label, *pair)
    return row | _shares(sweep, (before, after), pairs)


def _shares(sweep: Sweep, steered: tuple, pairs: dict[str, tuple]) -> dict:
    """Which share of the gain of NLL each comparison makes, with its interval."""

    def gain(pair: tuple) -> np.ndarray:
        old, new = (paired.losses(side, sweep.answer)["nll"] for side in pair)
        return old - new

    shares = {}
    for name in SHARES:
        ends = paired.share(gain(pairs[name]), gain(steered), sweep.cluster)
        for label, value in zip(("", "_low", "_high"), ends, strict=True):
            shares[f"share_{name}{label}"] = float(value)
    return shares


def against_controls(changes: dict, of_controls: dict[str, np.ndarray]) -> dict:
    """Rank and range of the matched controls at the same layer, under the same rule.

    Parameters
    ----------
    changes : dict
        Changes of a direction, as :meth:`layercal.metrics.scoring.Scoring.changes` gives them.
    of_controls : dict of array, shape (R,)
        From :meth:`layercal.steering.tally.Tally.changes`.
    """
    low, high = np.quantile(of_controls["nll"], [0.025, 0.975])
    compared = {
        "controls": len(of_controls["nll"]),
        "controls_nll_change": float(np.mean(of_controls["nll"])),
        "controls_nll_change_low": float(low),
        "controls_nll_change_high": float(high),
        "controls_ece_change": float(np.mean(of_controls["ece"])),
    }
    for score in ("nll", "brier", "ece"):
        compared[f"controls_{score}_p"] = rank_p(changes[f"{score}_change"], of_controls[score])
    return compared


def _baseline_rows(sweep: Sweep, mode: str) -> Iterator[dict]:
    """Baselines at each layer that is read; that of equal growth has the choice of layer, too."""
    *_, everywhere = layer_choices(sweep, mode)
    for place in _read_places(sweep, mode):
        layer = MODES[mode].read(sweep.layers[place], len(sweep.norms) - 1)
        head = {"kind": BASELINE, "mode": mode, "layer": layer, "layer_choice": FIXED}
        head |= {"read_at": layer, "alphas": [], "at_edge": False}
        before = sweep.unsteered(mode, place)
        for name, baseline in baselines.BASELINES.items():
            after = baselines.cross_apply(baseline, before, sweep.answer, sweep.fold)
            yield {"direction": name, **head, **sweep.changes(before, after)}
        places = [place] if mode == "lens" else everywhere
        after, chosen = _grown(sweep, mode, places)
        head |= {"direction": GROWTH_TEMPERATURE, **_choices(sweep, places, chosen)}
        yield head | sweep.changes(before, after)


def _outcome(row: dict, above_chance: bool) -> str:
    """Name of the outcome: nothing is called lowered or raised beyond Holm's level of 0.05."""
    if not above_chance:
        return AT_CHANCE
    if row["alphas"] and not any(row["alphas"]):
        return "unchanged, no scale helps"
    if row["nll_p_holm"] > LEVEL:
        ends = row["nll_change_low"], row["nll_change_high"]
        return "no change" if resampling.equivalent(*ends, row["nll_margin"]) else "undecided"
    if row["nll_change"] > 0:
        return "raised"
    if row["kind"] == BASELINE:
        return "lowered"
    # controls that are all alike rank a direction by what may be chance in the questions
    shown = row["controls_nll_p"] <= LEVEL and row["beyond_growth_nll_change_high"] < 0
    return "lowered" if shown else "lowered, not shown beyond matched controls"


def p_in_words(value: float) -> str:
    """A p-value in words; far tails are an extrapolation."""
    return f"p = {value:.2g}" if value >= 0.001 else "p < 0.001"


def change_in_words(row: dict, name: str, form: str = "+.3f") -> str:
    """A change with its 95 % interval."""
    value, low, high = (row[f"{name}_change{end}"] for end in ("", "_low", "_high"))
    return f"{value:{form}} (95 % CI {low:{form}} to {high:{form}})"


def _where(row: dict) -> str:
    layer = f"layer {row['layer']}"
    if row["layer_choice"] == CHOSEN:
        names = ", ".join(map(str, sorted(set(row["layers"]))))
        layer = f"the layer chosen with the scale ({names})"
    return f"{row['direction']} at {layer}, {row['mode']} (read at layer {row['read_at']})"


def _verdict(row: dict) -> str:
    where = _where(row)
    if row["outcome"] == AT_CHANCE:
        return f"{where}: the model's accuracy is not above chance; nothing is claimed."
    parts = [
        f"{where}: NLL {row['outcome']}, {change_in_words(row, 'nll')}, "
        f"{p_in_words(row['nll_p_holm'])} after Holm",
        f"Brier {change_in_words(row, 'brier')}",
        f"ECE {row['ece_before']:.3f} to {row['ece_after']:.3f}",
    ]
    if row["ece_before"] <= row["ece_null_high"]:
        parts.append(
            f"before, ECE was within its null floor ({row['ece_null_high']:.3f}): {headroom(row)}"
        )
    if "controls" in row:
        parts.append(
            f"{row['controls']} matched controls change NLL by "
            f"{row['controls_nll_change']:+.3f} on average, "
            f"{row['controls_nll_change_low']:+.3f} to "
            f"{row['controls_nll_change_high']:+.3f} in 95 %, "
            f"rank {p_in_words(row['controls_nll_p'])}"
        )
    parts += [text for name in SHARES if (text := _share_in_words(row, name))]
    kept = "kept" if row["accuracy_kept"] else "not shown to stay"
    parts.append(
        f"accuracy changes by {change_in_words(row, 'accuracy')}, {kept} within "
        f"{row['accuracy_margin']}"
    )
    if row["at_edge"]:
        parts.append("a chosen scale lies at the edge of the grid, so that the best may lie beyond")
    return "; ".join(parts) + "."


def headroom(row: dict) -> str:
    """What there was to gain: the interval of ECE before."""
    return (
        f"there is between {row['ece_before_low']:.3f} and {row['ece_before_high']:.3f} of it "
        f"to gain at n = {row['n']}"
    )


SHARES = {
    "frozen": "with the norm's scale frozen",
    "beyond_temperature": "beyond temperature scaling",
    "beyond_growth": "beyond the temperature of equal growth",
}


def _share_in_words(row: dict, name: str) -> str | None:
    value = row.get(f"share_{name}")
    if value is None:
        return None
    low, high = row[f"share_{name}_low"], row[f"share_{name}_high"]
    return f"{value:.0%} ({low:.0%} to {high:.0%}) of the gain is left {SHARES[name]}"


def transfer(
    sweep: Sweep, groups: dict[Group, np.ndarray], sources: dict[Direction, Group]
) -> list[dict]:
    """Score what was fitted on one group of the questions on each of the groups.

    Direction and scale both come from the source: the scale is chosen on its questions outside the
    fold that is scored, so that neither saw a question that it is scored on. So do the scales of
    the controls, beyond which alone a direction carries something over.

    Parameters
    ----------
    sweep : Sweep
    groups : dict of array of bool, shape (n,)
    sources : dict of Group
        Direction -> the group that it was fitted on.

    Returns
    -------
    list of dict
        ``fitted_on`` and ``scored_on``, with their names alone as ``source`` and ``target``;
        ``mode``, ``layer``, ``n``, scores before and after, changes with paired 95 % intervals,
        rank among the matched controls. No row is part of a family of tests: they describe.
    """
    parts = {target: sweep.take(inside) for target, inside in groups.items()}
    rows = []
    for mode in sweep.modes:
        for place, layer in enumerate(sweep.layers):
            before = sweep.unsteered(mode, place)
            for direction, source in sources.items():
                logits = sweep.settings(sweep.by_fold(mode, direction), [place])
                after = sweep.scored(logits, sweep.choose(logits, among=groups[source]))
                for target, inside in groups.items():
                    head: dict = {"fitted_on": str(source), "source": source.name}
                    head |= {"scored_on": str(target), "target": target.name}
                    head |= {"mode": mode, "layer": layer}
                    changes = parts[target].changes(before[inside], after[inside])
                    learnt = parts[source].controls
                    of_controls = parts[target].controls.changes(mode, [place], learnt)
                    rows.append(head | changes | against_controls(changes, of_controls))
    return rows


def reliability(sweep: Sweep, n_bins: int) -> list[dict]:
    """Bins of a reliability diagram, unsteered and steered by the primary direction.

    Parameters
    ----------
    sweep : Sweep
        The direction is added at its first layer, the peak, where it is read at the steered layer,
        else at the layer chosen with the scale.
    n_bins : int

    Returns
    -------
    list of dict
        ``mode``, ``steered`` and the columns of :func:`layercal.metrics.readings.reliability`;
        scales as in :func:`summarise`.
    """
    rows = []
    for mode in sweep.modes:
        *_, places = [[0]] if mode == "lens" else layer_choices(sweep, mode)
        logits = sweep.settings(sweep.by_fold(mode, sweep.directions[0]), places)
        after = sweep.scored(logits, sweep.choose(logits))
        for steered, read in ((False, sweep.unsteered(mode, places[0])), (True, after)):
            table = readings.reliability(*sweep.read(read), n_bins)
            rows += table.assign(mode=mode, steered=steered).to_dict("records")
    return rows
