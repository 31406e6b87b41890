"""The confidence correction phase: decision layer, peak, and how far calibration error falls."""

from __future__ import annotations

import numpy as np

from layercal import resampling


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


def detect(
    confidence: np.ndarray,
    correct: np.ndarray,
    weights: np.ndarray,
    chance: float,
    tolerance: float = 0.02,
    n_bins: int = 10,
) -> dict:
    """Decide whether a model shows a confidence correction phase.

    Parameters
    ----------
    confidence, correct : array, shape (L + 1, n)
    weights : array, shape (draws, n)
        Bootstrap resamples of the questions, paired over layers.
    chance : float
        Accuracy of guessing.
    tolerance : float
        For :func:`decision_layer`.
    n_bins : int

    Returns
    -------
    dict
        ``decision_layer``, ``peak_layer`` (largest ECE from the decision layer on),
        ``final_layer``, ``accuracy_final`` with its interval, ``ece_peak``, ``ece_final``,
        ``correction`` (their difference) with ``ci_low``, ``ci_high`` and ``p``, ``exists``,
        ``rises`` (whether the last layer's ECE lies, beyond its interval, above that of every layer
        from the decision layer on), and ``reason`` in words. Lower bound and p-value allow for the
        peak having been picked.
    """
    final, n = len(confidence) - 1, confidence.shape[-1]
    accuracy = correct.mean(-1)
    decision = decision_layer(accuracy, tolerance)
    samples = [
        resampling.ece_sample(confidence[layer], correct[layer], weights, n_bins)
        for layer in range(decision, final + 1)
    ]
    largest = int(np.argmax([sample.estimate for sample in samples]))
    *before, last = samples
    rises = False
    if decision + largest == final:
        found = resampling.Difference(0.0, 0.0, 0.0, 1.0)
        if before:
            highest = max(before, key=lambda sample: sample.estimate)
            rises = resampling.error_difference(highest, last).high < 0
    else:
        rivals = before[:largest] + before[largest + 1 :]
        found = resampling.error_difference(samples[largest], last, rivals)
    low, high = resampling.interval(accuracy[final], weights @ correct[final] / n)
    phase = {
        "decision_layer": decision,
        "peak_layer": decision + largest,
        "final_layer": final,
        "n": n,
        "chance": chance,
        "accuracy_final": float(accuracy[final]),
        "accuracy_final_low": float(low),
        "accuracy_final_high": float(high),
        "ece_peak": samples[largest].estimate,
        "ece_final": last.estimate,
        "correction": found.value,
        "ci_low": found.low,
        "ci_high": found.high,
        "p": found.p,
        "exists": bool(low > chance and found.low > 0),
        "rises": bool(rises),
    }
    return {**phase, "reason": _reason(phase, chance)}


def _reason(found: dict, chance: float) -> str:
    accuracy = (
        f"final accuracy {found['accuracy_final']:.3f} "
        f"(95 % CI {found['accuracy_final_low']:.3f} to {found['accuracy_final_high']:.3f})"
    )
    correction = (
        f"ECE goes from {found['ece_peak']:.3f} at layer {found['peak_layer']} to "
        f"{found['ece_final']:.3f} at layer {found['final_layer']}, a correction of "
        f"{found['correction']:.3f} (95 % CI {found['ci_low']:.3f} to {found['ci_high']:.3f})"
    )
    if found["accuracy_final_low"] <= chance:
        return (
            f"No phase is claimed: {accuracy} is not above chance ({chance:.2f}), and a model that "
            "does not know the answers has no correction to show, whatever its ECE does."
        )
    if found["decision_layer"] == found["final_layer"]:
        return (
            f"No phase is claimed: {accuracy} lies above chance, but it settles at the final layer "
            "only, with no layer before it in which ECE could be seen to fall."
        )
    if found["peak_layer"] == found["final_layer"]:
        return (
            f"No phase: {accuracy} lies above chance, but from the decision layer "
            f"{found['decision_layer']} on ECE is largest at the final layer itself."
        )
    if found["ci_low"] <= 0:
        return f"No phase: {accuracy} lies above chance, but {correction}, not clearly above 0."
    return (
        f"The phase exists: accuracy has settled from layer {found['decision_layer']} on, "
        f"{accuracy} lies above chance ({chance:.2f}), and {correction}."
    )
