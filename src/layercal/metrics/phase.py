"""The confidence correction phase: decision layer, peak, and how far calibration error falls."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

import numpy as np
from scipy.stats import kendalltau

from layercal.metrics import accuracy, differences, registry, resampling
from layercal.metrics.readings import Readings

LEVEL = 0.05  # of each test that the phase must pass
# accuracy has settled where it is shown to stay within this share of its final lead over chance
CLIMB = 0.25
# layers that a trend over layers needs: of three, even the surest order comes up by chance in 1 / 6
FEWEST = 4


@dataclass(frozen=True, kw_only=True)
class Phase:
    """What is known of the correction phase of a model, and what that amounts to.

    Attributes
    ----------
    decision_layer, peak_layer, final_layer : int
        The peak is where ECE is largest from the decision layer on.
    n : int
        Questions.
    accuracy_final, accuracy_final_low, accuracy_final_high : float
        At the last layer, with its 95 % interval.
    chance, chance_p, top_letter : float
        See :class:`layercal.metrics.accuracy.AboveChance`.
    ece_peak, ece_final : float
    correction, ci_low, ci_high, p : float
        Fall of ECE from the peak to the end; its interval and p-value allow for the peak having
        been picked.
    settled_layer : int
        From which on ECE must fall; :func:`settled_layer`.
    margin : float
        Of accuracy, for which that layer is shown.
    trend, trend_low, trend_high, trend_p : float
        Fall of a straight line fitted to ECE from there to the end.
    order_p : float
        See :func:`order_p`.
    rises : bool
        Whether ECE is shown to rise from there.
    resampled_share : float
    decision_layer_low, decision_layer_high : int
        See :func:`resampled_rule`.
    order : str, optional
        Of the options, in which the questions were asked.
    tuned : Phase, optional
        The same through the tuned lens.
    """

    decision_layer: int
    peak_layer: int
    final_layer: int
    n: int
    accuracy_final: float
    accuracy_final_low: float
    accuracy_final_high: float
    chance: float
    chance_p: float
    top_letter: float
    ece_peak: float
    ece_final: float
    correction: float
    ci_low: float
    ci_high: float
    p: float
    settled_layer: int
    margin: float
    trend: float
    trend_low: float
    trend_high: float
    trend_p: float
    order_p: float
    rises: bool
    resampled_share: float
    decision_layer_low: int
    decision_layer_high: int
    order: str | None = None
    tuned: Phase | None = None

    @property
    def above_chance(self) -> bool:
        """Whether the model knows more than its letters at the last layer."""
        return accuracy.AboveChance(
            self.accuracy_final, self.chance, self.chance_p, self.top_letter
        ).above

    @property
    def settled(self) -> bool:
        """Whether accuracy has settled early enough to see ECE fall."""
        return self.final_layer - self.settled_layer + 1 >= FEWEST

    @property
    def outcome(self) -> str:
        """``exists``, ``no phase`` (ECE is shown to rise), ``undecided`` or ``at chance``."""
        if not self.above_chance:
            return "at chance"
        if self.rises:
            return "no phase"
        falls = self.trend_p <= LEVEL and self.trend > 0 and self.order_p <= LEVEL
        return "exists" if self.settled and falls else "undecided"

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self.outcome == "exists"

    @property
    def reason(self) -> str:
        """The outcome in words, with the numbers that it rests on."""
        return _reason(self)

    def to_json(self) -> dict:
        """All fields and what follows from them: ``phase.json``."""
        held = {name: value for name, value in asdict(self).items() if value is not None}
        held |= {"tuned": self.tuned.to_json()} if self.tuned else {}
        derived = ("above_chance", "outcome", "exists", "reason")
        return held | {name: getattr(self, name) for name in derived}

    @classmethod
    def from_json(cls, content: dict) -> Phase:
        """Read what :meth:`to_json` gives; what follows from the fields is worked out again."""
        held = {field.name: content[field.name] for field in fields(cls) if field.name in content}
        tuned = content.get("tuned")
        return cls(**{**held, "tuned": tuned and cls.from_json(tuned)})


def decision_layer(accuracy: np.ndarray, tolerance: float) -> int:
    """First layer from which on accuracy stays within a tolerance of its final value.

    Parameters
    ----------
    accuracy : array, shape (L + 1,)
    tolerance : float

    Returns
    -------
    int
        Between 0 and L.
    """
    # a hair of slack, so that a difference of exactly the tolerance counts as within it
    outside = np.abs(accuracy - accuracy[-1]) > tolerance + 1e-12
    return int(np.flatnonzero(outside)[-1]) + 1 if outside.any() else 0


def sweep_layers(peak: int, final: int, most: int) -> list[int]:
    """Layers from the peak to L, evenly thinned to ``most`` of them, both ends kept.

    Parameters
    ----------
    peak, final : int
    most : int
        At least 2.
    """
    return sorted({round(layer) for layer in np.linspace(peak, final, min(most, final - peak + 1))})


def settled_layer(
    correct: np.ndarray, margin: float, tolerance: float, cluster: np.ndarray | None = None
) -> int:
    """First layer from which on accuracy is shown to equal its final value within a margin.

    Equivalence tests (two one-sided ones at 0.05 each, by :func:`accuracy.paired_interval`) go down
    from the last layer and stop at the first that fails, so that a layer whose accuracy is off by
    the margin or more is called settled in 0.05 at most, however many layers there are. They stop,
    too, where accuracy is shown to be off by more than the tolerance, which is what decides where
    there are questions enough.

    Parameters
    ----------
    correct : array, shape (L + 1, n)
    margin, tolerance : float
    cluster : array of int, shape (n,), optional

    Returns
    -------
    int
        L if nothing is shown.
    """
    for layer in range(len(correct) - 2, -1, -1):
        low, high = accuracy.paired_interval(correct[-1], correct[layer], cluster, 1 - 2 * LEVEL)
        off = low > tolerance or high < -tolerance
        if off or not resampling.equivalent(low, high, margin):
            return layer + 1
    return 0


def order_p(ece: np.ndarray) -> float:
    """Chance that layers whose order means nothing fall as much (Mann 1945; Kendall's tau).

    Parameters
    ----------
    ece : array, shape (layers,)
        In order of depth.
    """
    if len(ece) < 2 or np.ptp(ece) == 0:
        return 1.0
    return float(kendalltau(np.arange(len(ece)), ece, alternative="less").pvalue)


def resampled_rule(
    curves: np.ndarray, ece: np.ndarray, chance: float, margin: float, tolerance: float
) -> dict:
    """What the rule, without its tests, says of each resample of the questions.

    Parameters
    ----------
    curves, ece : array, shape (draws, L + 1)
        Resampled accuracy and ECE.
    chance, margin, tolerance : float

    Returns
    -------
    dict
        ``resampled_share`` in which there is a phase: accuracy ends above chance, it stays within
        the margin of its final value over at least ``FEWEST`` layers, and ECE falls over these
        (:func:`order_p`); ``decision_layer_low`` and ``decision_layer_high``, between which the
        decision layer lies in 90 %.
    """
    there, decisions = 0, []
    for curve, errors in zip(curves, ece, strict=True):
        first = decision_layer(curve, margin)
        decisions.append(decision_layer(curve, tolerance))
        if curve[-1] > chance and len(curve) - first >= FEWEST:
            there += order_p(errors[first:]) <= LEVEL
    low, high = np.quantile(decisions, [0.05, 0.95], method="inverted_cdf")
    return {
        "resampled_share": there / len(curves),
        "decision_layer_low": int(low),
        "decision_layer_high": int(high),
    }


def detect(
    confidence: np.ndarray,
    correct: np.ndarray,
    weights: np.ndarray,
    known: accuracy.AboveChance,
    tolerance: float = 0.02,
    n_bins: int = 10,
    cluster: np.ndarray | None = None,
) -> Phase:
    """Decide whether a model shows a confidence correction phase.

    It exists if final accuracy lies above chance, accuracy is shown to have settled
    (:func:`settled_layer`) over at least ``FEWEST`` layers, and over these ECE falls with depth, by
    more than the sample of questions explains and by more than layers in any order would. It is
    shown not to if over these ECE rises in the same sense.

    Parameters
    ----------
    confidence, correct : array, shape (L + 1, n)
    weights : array, shape (draws, n)
        Bootstrap resamples of the questions, paired over layers.
    known : AboveChance
        Of the last layer.
    tolerance : float
        For :func:`decision_layer`.
    n_bins : int
    cluster : array of int, shape (n,), optional
        Questions that belong together; each on its own if left out.

    Returns
    -------
    Phase
    """
    final, n = len(confidence) - 1, confidence.shape[-1]
    curve = correct.mean(-1)
    decision = decision_layer(curve, tolerance)
    samples = [
        registry.ece_sample(*pair, weights, n_bins)
        for pair in zip(confidence, correct.astype(float), strict=True)
    ]
    ece = np.array([sample.estimate for sample in samples])
    peak = decision + int(np.argmax(ece[decision:]))
    fall = differences.error_difference(samples[peak], samples[final], max(1, final - decision))
    margin = CLIMB * max(0.0, known.accuracy - known.chance)
    first = settled_layer(correct, margin, tolerance, cluster)
    trend = _fall(samples[first:])
    rises = trend.p <= LEVEL and trend.value < 0 and order_p(-ece[first:]) <= LEVEL
    resampled = np.stack([sample.statistic(sample.noise + sample.gap) for sample in samples], -1)
    curves = weights @ correct.T.astype(np.float32) / n
    low, high = resampling.interval(curve[final], curves[:, final])
    return Phase(
        decision_layer=decision,
        peak_layer=peak,
        final_layer=final,
        n=n,
        accuracy_final=float(curve[final]),
        accuracy_final_low=float(low),
        accuracy_final_high=float(high),
        chance=known.chance,
        chance_p=known.p,
        top_letter=known.top_letter,
        ece_peak=float(ece[peak]),
        ece_final=float(ece[final]),
        correction=fall.value,
        ci_low=fall.low,
        ci_high=fall.high,
        p=fall.p,
        settled_layer=first,
        margin=margin,
        trend=trend.value,
        trend_low=trend.low,
        trend_high=trend.high,
        trend_p=trend.p,
        order_p=order_p(ece[first:]),
        rises=bool(rises),
        **resampled_rule(curves, resampled, known.chance, margin, tolerance),
    )


def of_readings(
    read: Readings, *, draws: int, seed: int, tolerance: float = 0.02, n_bins: int = 10
) -> Phase:
    """Decide whether readings show a phase; :func:`detect` with its resamples.

    Parameters
    ----------
    read : Readings
        ``logits`` of shape (L + 1, n, k).
    draws, seed : int
    tolerance : float
    n_bins : int
    """
    letters = read.logits[-1].argmax(-1), read.answer, read.n_options[-1]
    known = accuracy.above_chance(*letters, read.cluster, draws, seed)
    weights = resampling.cluster_weights(read.cluster, draws, seed)
    return detect(read.confidence, read.correct, weights, known, tolerance, n_bins, read.cluster)


def _fall(samples: list[resampling.GapSample]) -> differences.Difference:
    """How far a straight line through the errors falls from the first to the last of them."""
    if len(samples) < 2:
        return differences.Difference(0.0, 0.0, 0.0, 1.0)
    depth = np.arange(len(samples)) - (len(samples) - 1) / 2
    return differences.contrast(samples, -depth * (len(samples) - 1) / (depth**2).sum())


def _reason(phase: Phase) -> str:
    outcome, final = phase.outcome, phase.final_layer
    accuracy_said = (
        f"final accuracy {phase.accuracy_final:.3f} "
        f"(95 % CI {phase.accuracy_final_low:.3f} to {phase.accuracy_final_high:.3f})"
    )
    letters = f"{phase.chance:.3f} from the letters named, p = {phase.chance_p:.2g}"
    if outcome == "at chance":
        return (
            f"No phase is claimed: as asked here, {accuracy_said} is not above chance ({letters}; "
            f"one letter makes up {phase.top_letter:.0%} of the predictions), and a model that "
            "does not know the answers has no correction to show, whatever its ECE does."
        )
    above = f"{accuracy_said} lies above chance ({letters})"
    share = f"Without tests, {phase.resampled_share:.0%} of the resamples show a phase."
    ends = (
        f"ECE goes from {phase.ece_peak:.3f} at layer {phase.peak_layer} to "
        f"{phase.ece_final:.3f} at layer {final}, a correction of {phase.correction:.3f} "
        f"(95 % CI {phase.ci_low:.3f} to {phase.ci_high:.3f})"
    )
    first = phase.settled_layer
    line = (
        f"a straight line through ECE falls by {phase.trend:.3f} (95 % CI "
        f"{phase.trend_low:.3f} to {phase.trend_high:.3f}) from layer {first} to {final}, "
        f"and layers in any order would fall so in {phase.order_p:.2g}"
    )
    within = f"within {phase.margin:.3f}, a quarter of its lead over chance"
    if outcome == "no phase":
        return (
            f"No phase: {above}, and over the layers from {first} on, at which it has settled "
            f"({within}), ECE rises, to {phase.ece_final:.3f} at the last. {share}"
        )
    if outcome == "exists":
        settled = f"accuracy has settled from layer {first} on ({within})"
        return f"The phase exists: {above}, {settled}, {line}; {ends}. {share}"
    if not phase.settled:
        why = (
            f"accuracy is shown to be {within}, from layer {first} on only, too "
            f"late to see ECE fall over {FEWEST} layers (its curve stays near the final value from "
            f"layer {phase.decision_layer} on; to show it takes more questions)"
        )
    else:
        why = f"ECE is not shown to fall: {line}"
    return f"Undecided: {above}, but {why}. {ends[0].upper()}{ends[1:]}. {share}"
