"""What a study says of the paper's claims, and the family of tests in which it says so.

Every claim about steering rests on the primary direction, on NLL, and on one setting that is named
before anything is steered: read at the steered layer, the first layer of the sweep, which is the
peak of ECE; through the network, the layer chosen with the scale on other questions.

The family of a study holds one branch for each model, question set and mode of that set; sets may
be steered in different modes. Its level is split evenly over the branches (Bonferroni). Within a
branch, that NLL falls is tested at the branch's level; if it is shown, the level passes on to what
is claimed of that fall (serial gatekeeping; Dmitrienko & Tamhane 2007, doi:10.1002/sim.2864), in
the shares of ``CLAIMS``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from layercal.metrics.paired import MeanChange
from layercal.metrics.phase import Phase
from layercal.metrics.resampling import equivalent
from layercal.steering import dimensions
from layercal.steering.verdicts import AT_CHANCE, CHOSEN, LEVEL, change_in_words, p_in_words

CONFIRMED, REFUTED, UNDECIDED = "confirmed", "refuted", "undecided"
NOT_APPLICABLE = "not applicable"
PHASE, LOWERS, LOW_DIMENSIONAL = "phase", "lowers-nll", "low-dimensional"
BEYOND_CONTROLS, ACCURACY_KEPT = "beyond-controls", "accuracy-kept"
# what the outcome of the phase's tests says of the claim that there is one
OF_PHASE = {
    "exists": CONFIRMED,
    "no phase": REFUTED,
    "undecided": UNDECIDED,
    "at chance": NOT_APPLICABLE,
}


@dataclass(frozen=True)
class Family:
    """How the level of a study's tests is split.

    Attributes
    ----------
    branches : int
        Of a model, a question set and a mode in which that set is steered; of the whole study.
    """

    branches: int = 1

    @property
    def branch_level(self) -> float:
        """Level of one branch."""
        return LEVEL / self.branches

    def level_of(self, claim: str) -> float:
        """Level at which a claim of a branch is tested."""
        return self.branch_level * (FALL if claim == LOWERS else CLAIMS[claim]).part


@dataclass(frozen=True)
class Claim:
    """What is claimed of a fall of NLL.

    Attributes
    ----------
    text : str
        The claim in words.
    part : float
        Share of the branch's level.
    change : str
        Which change it rests on.
    measure : str
        That change in words.
    unit : str
    decide : function (row, level) -> (outcome, reason)
    """

    text: str
    part: float
    change: str
    measure: str
    unit: str
    decide: Callable[[dict, float], tuple[str, str]]


def three_way(row: dict, change: str, level: float) -> tuple[str, str]:
    """Whether a change of NLL is a fall, or none worth the name, from one interval.

    Both can be said of the same interval without a further allowance.

    Parameters
    ----------
    row : dict
        From :func:`layercal.steering.verdicts.summarise`.
    change : str
        Begin of its keys: ``nll``, or that of a comparison, such as ``frozen_nll``.
    level : float
        The interval is one of ``1 - level``.

    Returns
    -------
    outcome, reason : str
        ``refuted`` if the interval leaves no fall of more than ``nll_margin``: NLL rises, or stays
        within it; else ``confirmed`` if the interval lies below 0, or ``undecided``.
    """
    measured = MeanChange(row[f"{change}_change"], row[f"{change}_change_error"], row["freedom"])
    low, high = measured.interval(1 - level)
    margin = row["nll_margin"]
    if low > 0:
        return REFUTED, "it rises"
    if low >= -margin:
        told = "within" if high <= margin else "it falls by no more than"
        return REFUTED, f"{told} {margin} nats" + " of none" * (high <= margin)
    if high < 0:
        return CONFIRMED, "it falls"
    return UNDECIDED, f"a fall of more than {margin} nats is neither shown nor excluded"


def _beyond_controls(row: dict, level: float) -> tuple[str, str]:
    """By rank, and beyond the temperature of equal growth.

    The controls are drawn at random, and so are the questions: where the controls are all alike, a
    difference that other questions would turn round ranks first as well.
    """
    p, count = row["controls_nll_p"], row["controls"]
    if p >= 0.5:
        return REFUTED, "at least half of the controls do as well"
    outcome, reason = three_way(row, "beyond_growth_nll", level)
    if outcome != CONFIRMED:
        return outcome, f"beyond the temperature of equal growth {reason}"
    if p <= level:
        return CONFIRMED, "few controls do as well"
    lowest = 1 / (1 + count)
    if lowest > level:
        needed = int(np.ceil(1 / level)) - 1
        return UNDECIDED, (
            f"a rank among {count} controls cannot be below {lowest:.2g}, and {level:.2g} is asked "
            f"for; set directions: random to {needed}"
        )
    return UNDECIDED, "too many controls do as well"


def _accuracy_kept(row: dict, level: float) -> tuple[str, str]:
    """From the interval at the claims' level, which the verdicts were told."""
    low, high, margin = (
        row["accuracy_claim_low"],
        row["accuracy_claim_high"],
        row["accuracy_margin"],
    )
    if equivalent(low, high, margin):
        return CONFIRMED, f"within {margin}"
    if high < -margin or low > margin:
        return REFUTED, f"beyond {margin}"
    return UNDECIDED, f"not shown to stay within {margin}"


def _of_nll(change: str) -> Callable[[dict, float], tuple[str, str]]:
    return lambda row, level: three_way(row, change, level)


FALL = Claim("it lowers NLL", 1, "nll", "change of NLL", "nats", _of_nll("nll"))
# a rank has a floor of 1 / (1 + R), so that it gets half of the level
CLAIMS = {
    BEYOND_CONTROLS: Claim(
        "it does so more than matched random directions",
        1 / 2,
        "beyond_growth_nll",
        "change of NLL beyond the temperature of equal growth",
        "nats",
        _beyond_controls,
    ),
    ACCURACY_KEPT: Claim(
        "it leaves accuracy within the margin",
        1 / 6,
        "accuracy",
        "change of accuracy",
        "share of questions",
        _accuracy_kept,
    ),
    "norm-frozen": Claim(
        "its gain is there with the norm's scale frozen",
        1 / 6,
        "frozen_nll",
        "change of NLL with the norm's scale frozen",
        "nats",
        _of_nll("frozen_nll"),
    ),
    "beyond-temperature": Claim(
        "it adds to what temperature scaling gains",
        1 / 6,
        "beyond_temperature_nll",
        "change of NLL with both sides temperature-scaled",
        "nats",
        _of_nll("beyond_temperature_nll"),
    ),
}


def claims(phase: Phase, rows: Sequence[dict], by_rank: pd.DataFrame, family: Family) -> list[dict]:
    """What a study says of the paper's claims, with the numbers that it rests on.

    Parameters
    ----------
    phase : Phase
    rows : sequence of dict
        From :func:`layercal.steering.verdicts.summarise`, of all groups, the primary direction
        first.
    by_rank : DataFrame
        From :func:`layercal.steering.dimensions.table`.
    family : Family

    Returns
    -------
    list of dict
        ``key`` (what is claimed), ``direction`` and ``mode`` (of steering, else None), ``claim`` in
        words, ``outcome`` (``confirmed``, ``refuted``, ``undecided`` or ``not applicable``),
        ``evidence`` in words, the number that it rests on, ``measure``, ``value`` in ``unit`` with
        ``ci_low`` and ``ci_high`` (95 %), ``n`` questions; of steering, the ``change`` too.
    """
    listed = [_phase_claim(phase)]
    for row in settings(rows):
        listed += _of_branch(row, family)
    return [*listed, _dimension_claim(by_rank, phase.exists)]


def settings(rows: Sequence[dict]) -> list[dict]:
    """The rows on which claims rest: one of the primary direction for each mode."""
    by_mode: dict[str, dict] = {}
    for row in rows:
        primary = row["direction"] == rows[0]["direction"] and row["group"] == "all"
        if primary and (row["mode"] not in by_mode or row["layer_choice"] == CHOSEN):
            by_mode[row["mode"]] = row
    return list(by_mode.values())


def _of_branch(row: dict, family: Family) -> list[dict]:
    """The claims of one mode."""
    outcome, reason = FALL.decide(row, family.level_of(LOWERS))
    if not any(row["alphas"]):  # what was never tried on a scored question is not shown to fail
        outcome, reason = UNDECIDED, "no scale helps on the questions that it is chosen on"
    if row["outcome"] == AT_CHANCE:
        outcome, reason = NOT_APPLICABLE, AT_CHANCE
    claims = [_claimed(row, LOWERS, FALL, (outcome, reason), row["verdict"])]
    for key, claim in CLAIMS.items():
        decided = NOT_APPLICABLE, "NLL is not shown to fall"
        if outcome == CONFIRMED:
            decided = claim.decide(row, family.level_of(key))
        evidence = f"{claim.measure}: {change_in_words(row, claim.change, '+.4f')}"
        if key == BEYOND_CONTROLS:
            evidence = f"{_ranks(row)}; {evidence}"
        claims.append(_claimed(row, key, claim, decided, evidence))
    return claims


def _claimed(row: dict, key: str, claim: Claim, decided: tuple, said: str) -> dict:
    outcome, reason = decided
    at = "the layer chosen" if row["layer_choice"] == CHOSEN else f"layer {row['layer']}"
    if outcome != NOT_APPLICABLE:
        said = f"{said.rstrip('.')}: {outcome}, {reason}."
    value, low, high = (row[f"{claim.change}_change{end}"] for end in ("", "_low", "_high"))
    return {
        "key": key,
        "direction": row["direction"],
        "mode": row["mode"],
        "claim": f"{row['direction']}, {row['mode']}: {claim.text}",
        "change": claim.change,
        "outcome": outcome,
        "evidence": said,
        "measure": f"{claim.measure}, steered at {at}",
        "unit": claim.unit,
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": row["n"],
    }


def _ranks(row: dict) -> str:
    return (
        f"Among {row['controls']} matched controls the rank of its NLL is "
        f"{p_in_words(row['controls_nll_p'])}, of its Brier score "
        f"{p_in_words(row['controls_brier_p'])}, of its ECE {p_in_words(row['controls_ece_p'])}; "
        f"they change NLL by {row['controls_nll_change']:+.3f} on average, it does by "
        f"{row['nll_change']:+.3f}"
    )


def _phase_claim(phase: Phase) -> dict:
    return {
        "key": PHASE,
        "direction": None,
        "mode": None,
        "claim": "a confidence correction phase exists",
        "outcome": OF_PHASE[phase.outcome],
        "evidence": phase.reason,
        "measure": f"fall of ECE, layer {phase.peak_layer} to {phase.final_layer}",
        "unit": "ECE",
        "value": phase.correction,
        "ci_low": phase.ci_low,
        "ci_high": phase.ci_high,
        "n": phase.n,
    }


def _dimension_claim(table: pd.DataFrame, exists: bool) -> dict:
    layer = int(table["layer"].min())
    shift = dimensions.mean_shift(table, layer)
    ends = (float(shift[f"nll_share{end}"]) for end in ("", "_low", "_high"))
    value, low, high = (end if np.isfinite(end) else None for end in ends)  # JSON has no infinity
    return {
        "key": LOW_DIMENSIONAL,
        "direction": None,
        "mode": None,
        "claim": "the correction is low-dimensional",
        "outcome": "see the number" if exists else NOT_APPLICABLE,
        "evidence": dimensions.in_words(table, layer),
        "measure": f"share of the fall of NLL from layer {layer} that one shift, the same for all "
        "questions, brings",
        "unit": "share",
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": int(shift["n"]),
    }
