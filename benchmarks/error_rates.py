"""Are intervals, p-values and verdicts honest? Simulated models whose truth is known.

A question has a true distribution p over four options, from which its answer is drawn. A reading
sees p with options swapped with probability s and answers with what then is its exact posterior, so
it is perfectly calibrated whatever s is; raised to a power and normalised, it is over- (or, below
1, under-) confident by a known amount. Readings of one question share its p and its answer.

    python benchmarks/error_rates.py                 # all tables; hours on two cores
    python benchmarks/error_rates.py --part floor --repeats 200 --sizes 281
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from functools import cache

import numpy as np
import pandas as pd
from scipy.special import expit, logit, ndtri
from tqdm import tqdm

from layercal.metrics import (
    accuracy,
    calibration,
    comparisons,
    differences,
    paired,
    phase,
    readings,
    recalibration,
    registry,
    resampling,
)

SIZES = (281, 1500)
DRAWS = 1000


def questions(rng, n):
    """True distributions and answers drawn from them."""
    p = rng.dirichlet(np.full(4, 0.6), n)
    answer = (rng.random((n, 1)) > p.cumsum(-1)).sum(-1).clip(0, 3)
    return p, answer


def reading(rng, p, swap, power):
    """A layer's probabilities: calibrated at power 1, overconfident above."""
    swapped = np.where((rng.random(len(p)) < swap)[:, None], p[:, [1, 0, 3, 2]], p)
    seen = (1 - swap) * swapped + swap * swapped[:, [1, 0, 3, 2]]
    sharpened = seen**power
    return sharpened / sharpened.sum(-1, keepdims=True)


def pairs(p, answer):
    return p.max(-1), (p.argmax(-1) == answer).astype(float)


@cache
def true_ece(swap, power, n=200_000):
    """ECE of a reading without sampling noise: correctness replaced by its chance."""
    p, _ = questions(np.random.default_rng(1), n)
    calibrated = reading(np.random.default_rng(2), p, swap, 1)
    said = reading(np.random.default_rng(2), p, swap, power)
    chance = np.take_along_axis(calibrated, said.argmax(-1)[:, None], -1)[:, 0]
    bins = calibration.bin_index(said.max(-1), 10)
    return np.abs(np.bincount(bins, chance - said.max(-1), 10)).sum() / n


@cache
def power_for(ece, swap):
    """Power at which a reading has this ECE; below 1 for a negative one, underconfident."""
    if ece == 0:
        return 1.0
    near, far = 1.0, 6.0 if ece > 0 else 0.05
    for _ in range(18):
        middle = (near + far) / 2
        near, far = (middle, far) if true_ece(swap, middle) < abs(ece) else (near, middle)
    return (near + far) / 2


def floor_once(seed, n, copies):
    """Whether a calibrated model lies above its floor, by rows and by clusters."""
    rng = np.random.default_rng(seed)
    confidence = np.repeat(rng.uniform(0.25, 1, n), copies)
    confidence = np.clip(confidence + 0.02 * rng.normal(size=len(confidence)), 0.25, 1)
    cluster = np.repeat(np.arange(n), copies)
    # 0.8 of the copies share their luck, as translations of one question do
    luck = np.where(rng.random(n * copies) < 0.8, rng.random(n)[cluster], rng.random(n * copies))
    correct = (luck < confidence).astype(float)
    weights = resampling.cluster_weights(cluster, DRAWS, seed)
    made = registry.ece_sample(confidence, correct, weights)
    uniform = rng.random((DRAWS, n * copies), np.float32)
    rows, clusters = made.null([(uniform < confidence).astype(np.float32)]), made.null(None)
    used = clusters if copies > 1 else rows
    return {
        "above, rows alone": made.estimate > np.quantile(rows, 0.95),
        "above, as used": made.estimate > np.quantile(used, 0.95),
    }


def difference_once(seed, n, errors, swaps):
    """Interval and p of the difference of two readings with these true errors."""
    rng = np.random.default_rng(seed)
    powers = [power_for(*pair) for pair in zip(errors, swaps, strict=True)]
    truth = abs(errors[0]) - abs(errors[1])
    p, answer = questions(rng, n)
    weights = resampling.resample_weights(n, DRAWS, seed)
    found = differences.error_difference(
        *(
            registry.ece_sample(*pairs(reading(rng, p, *one), answer), weights)
            for one in zip(swaps, powers, strict=True)
        )
    )
    return {
        "covers": found.low <= truth <= found.high,
        "width": found.high - found.low,
        "p <= .05": found.p <= 0.05,
        "p <= .001": found.p <= 0.001,
    }


def model(rng, p, answer, swap, errors, peaks=1):
    """What is compared of a model that errs where options are swapped, with ECE at peak and end.

    The peak is the worst of so many layers that are equally bad.
    """
    asked = pd.DataFrame({"answer": answer, "language": "en", "n_options": 4})
    asked["cluster"] = np.arange(len(answer))
    at_peak = [reading(rng, p, swap, power_for(errors[0], swap)) for _ in range(peaks)]
    worst = max(at_peak, key=lambda said: float(calibration.ece(*pairs(said, answer))))
    final = reading(rng, p, swap, power_for(errors[1], swap))
    reached = dict.fromkeys(phase.Phase.__dataclass_fields__, 0.0)
    reached |= {"decision_layer": 0, "final_layer": peaks}  # p of chance is 0: above it
    return comparisons.Reading(
        model=f"swaps {swap}",
        questions="q",
        asked=asked,
        peak=np.log(np.maximum(worst, 1e-12)),
        final=np.log(np.maximum(final, 1e-12)),
        phase=phase.Phase(**reached),
    )


@cache
def true_means(swap, errors, n=200_000):
    """What :func:`comparison_once` compares, but for the sample of questions."""
    p, answer = questions(np.random.default_rng(1), n)
    said = reading(np.random.default_rng(2), p, swap, power_for(errors[1], swap))
    losses = paired.losses(np.log(np.maximum(said, 1e-12)), answer)
    means = {name: loss.mean() for name, loss in losses.items()}
    means["accuracy"] = pairs(said, answer)[1].mean()
    return means | {"ece": abs(errors[1]), "correction": abs(errors[0]) - abs(errors[1])}


def comparison_once(seed, n, a, b, peaks=4):
    """Two models, each (swap, errors at peak and end), compared in all metrics."""
    rng = np.random.default_rng(seed)
    p, answer = questions(rng, n)
    sides = [model(rng, p, answer, *side, peaks) for side in (a, b)]
    found = comparisons.table(sides, 2, 10, DRAWS, seed).set_index("metric")
    truth = pd.Series(true_means(*b)) - pd.Series(true_means(*a))
    covers = (found["ci_low"] <= truth[found.index]) & (truth[found.index] <= found["ci_high"])
    return {
        **{f"{name}, p <= .05": row for name, row in (found["p"] <= 0.05).items()},
        **{f"{name}, covers": row for name, row in covers.items()},
        "any stands": (found["outcome"] != "undecided").any(),
    }


def temperature_once(seed, n, factor, copies):
    """Whether the interval of a temperature covers it; each question in so many copies."""
    rng = np.random.default_rng(seed)
    p, answer = questions(rng, n // copies)
    logits, answer = (np.repeat(each, copies, 0) for each in (factor * np.log(p), answer))
    cluster = np.repeat(np.arange(n // copies), copies)
    _, low, high = recalibration.temperature_interval(logits, answer, cluster)
    return {"covers": low <= factor <= high, "width of the logarithm": np.log(high / low)}


def logits_of(rng, p, power):
    """Logits of a reading that sees a tenth of the questions with options swapped."""
    return np.log(np.maximum(reading(rng, p, 0.1, power), 1e-12))


def steps_once(seed, n, knows):
    """Whether any of eight layers is said to add knowledge, and whether to better the scale.

    All know the same, from sharp to calibrated; or nothing, the answers being permuted.
    """
    rng = np.random.default_rng(seed)
    p, answer = questions(rng, n)
    answer = answer if knows else rng.permutation(answer)
    layers = np.stack([logits_of(rng, p, power) for power in np.linspace(4, 1, 8)])
    tempered = recalibration.cross_tempered(layers, answer, np.arange(n) % 5)
    table = recalibration.steps(readings.Readings(layers, answer, {}), tempered)
    shown = {(row["layer"], row["metric"]) for row in table if row["ci_low"] > 0}
    return {
        name: any(metric == step for _, metric in shown)
        for name, step in (
            ("knowledge added", recalibration.KNOWLEDGE),
            ("scale bettered", recalibration.SCALE),
        )
    }


def share_once(seed, n, factor):
    """Whether all of the excess of a layer that differs by a factor is called scale."""
    rng = np.random.default_rng(seed)
    p, answer = questions(rng, n)
    layers = np.stack([logits_of(rng, p, factor), logits_of(rng, p, 1)])
    tempered = recalibration.cross_tempered(layers, answer, np.arange(n) % 5)
    _, low, high = recalibration.scale_share(readings.Readings(layers, answer, {}), tempered, 0)
    return {"covers 1": low <= 1 <= high, "no ends": np.isinf(low), "above 0": low > 0}


def same_once(seed, n, factor, power):
    """Whether logits times nearly one are told apart."""
    rng = np.random.default_rng(seed)
    p, answer = questions(rng, n)
    weights = resampling.resample_weights(n, DRAWS, seed)
    found = differences.error_difference(
        *(
            registry.ece_sample(*pairs(reading(rng, p, 0, power * by), answer), weights)
            for by in (factor, 1)
        )
    )
    return {"p <= .05": found.p <= 0.05, "width": found.high - found.low}


def mce_once(seed, n, error, min_count):
    """Whether the interval of MCE covers its truth, over the bins that count."""
    rng = np.random.default_rng(seed)
    p, answer = questions(rng, n)
    weights = resampling.resample_weights(n, DRAWS, seed)
    said = reading(rng, p, 0.0, power_for(error, 0.0))
    made = registry.mce_sample(*pairs(said, answer), weights, 10, min_count)
    bins = calibration.bin_index(said.max(-1), 10)
    count = np.bincount(bins, minlength=10)
    gap = np.bincount(bins, p.max(-1) - said.max(-1), 10) / np.maximum(count, 1)
    truth = np.abs(gap[count >= min_count]).max()
    low, high = resampling.error_interval(made)
    return {"covers": low <= truth <= high, "width": high - low, "below .002": high - low < 0.002}


def accuracy_once(seed, n, lost, copies):
    """Whether a loss of accuracy at the margin of 0.02 is called kept, and no loss is."""
    rng = np.random.default_rng(seed)
    whole = rng.choice(3, (n, 1), p=[lost - 0.02, lost, 1.02 - 2 * lost])
    alone = rng.choice(3, (n, copies), p=[lost - 0.02, lost, 1.02 - 2 * lost])
    kind = np.where(rng.random((n, copies)) < (0.8 if copies > 1 else 1), whole, alone).ravel()
    cluster = np.repeat(np.arange(n), copies)
    low, high = accuracy.paired_interval(kind == 1, kind == 0, cluster)
    weights = resampling.cluster_weights(cluster, DRAWS, seed)
    change = (kind == 0) * 1.0 - (kind == 1)
    basic = resampling.interval(change.mean(), weights @ change / len(change))
    return {
        "kept, bootstrap": basic[0] >= -0.02,
        "kept, score": low >= -0.02,
        "covers": low <= -0.02 <= high,
    }


def chance_once(seed, n, named, knows):
    """Whether accuracy is called above chance, by 1 / 4 and by the letters named."""
    rng = np.random.default_rng(seed)
    answer = rng.choice(4, n, p=[0.23, 0.25, 0.255, 0.265])
    predicted = np.where(rng.random(n) < named, 3, rng.integers(0, 4, n))
    predicted = np.where(rng.random(n) < knows, answer, predicted)
    weights = resampling.resample_weights(n, DRAWS, seed)
    correct = (predicted == answer) * 1.0
    low, _ = resampling.interval(correct.mean(), weights @ correct / n)
    found = accuracy.above_chance(predicted, answer, draws=DRAWS, seed=seed)
    return {"above 1/4": low > 0.25, "above its letters": found.above}


def layers(rng, n, right, gap, persistence=0.96):
    """Confidence and correctness over layers with these accuracies and overconfidences.

    Correctness is a threshold of a normal score that each layer takes over from the one before with
    this correlation, so that layers that know equally much still disagree now and then.
    """
    spread = rng.normal(0, 1, n)
    score, confidence, correct = rng.normal(size=n), [], []
    for a, g in zip(right, gap, strict=True):
        chance = expit(logit(a) + spread)
        fresh = rng.normal(size=n)
        score = persistence * score + np.sqrt(1 - persistence**2) * fresh
        correct.append(score < ndtri(chance))
        confidence.append(np.clip(chance + g, 0.25, 1))
    return np.stack(confidence), np.stack(correct)


SUBJECT = [0.335, 0.324, 0.295, 0.242, 0.062]
PHI = [0.20, 0.19, 0.18, 0.15, 0.11, 0.08]


def phase_once(seed, n, right, gap):
    """Verdict on layers with these accuracies and overconfidences, or exchangeable ones."""
    rng = np.random.default_rng(seed)
    gap = rng.uniform(0.02, 0.35, len(right)) if gap == "exchangeable" else gap
    confidence, correct = layers(rng, n, right, gap)
    weights = resampling.resample_weights(n, DRAWS, seed)
    known = accuracy.AboveChance(float(correct[-1].mean()), 0.25, 0.001, 0.3)
    found = phase.detect(confidence, correct, weights, known)
    return {
        "exists": found.exists,
        "no phase": found.outcome == "no phase",
        "settled": found.settled,
        "share of resamples": found.resampled_share,
    }


LATE = [0.27, 0.33, 0.42]  # accuracies before it settles
PARTS = {  # part -> what is simulated: (function of seed and n, further arguments)
    "floor": {
        "calibrated, independent rows": (floor_once, 1),
        "calibrated, clusters of 7": (floor_once, 7),
    },
    "difference": {
        "0, 0": (difference_once, (0, 0), (0.1, 0)),
        "0.10, 0.10": (difference_once, (0.1, 0.1), (0.1, 0)),
        "0.06 over, 0.06 under": (difference_once, (0.06, -0.06), (0, 0)),
        "0.03 over, 0.03 under": (difference_once, (0.03, -0.03), (0, 0)),
        "0.03, 0": (difference_once, (0.03, 0), (0.1, 0)),
        "0.12, 0.06": (difference_once, (0.12, 0.06), (0.1, 0)),
        "0.20, 0.12": (difference_once, (0.2, 0.12), (0.1, 0)),
        "0.20, 0": (difference_once, (0.2, 0), (0.1, 0)),
    },
    "comparison": {
        "one knows as much as the other": (comparison_once, (0.3, (0.2, 0.06)), (0.3, (0.2, 0.06))),
        "both calibrated at the end": (comparison_once, (0.3, (0.2, 0)), (0.3, (0.2, 0))),
        "over- and underconfident": (comparison_once, (0.3, (0.2, 0.06)), (0.3, (0.2, -0.06))),
        "one knows more": (comparison_once, (0.4, (0.3, 0.1)), (0.1, (0.2, 0.1))),
    },
    "temperature": {
        "1": (temperature_once, 1, 1),
        "2.5": (temperature_once, 2.5, 1),
        "2.5, copies of 4": (temperature_once, 2.5, 4),
    },
    "steps": {
        "all know the same": (steps_once, True),
        "answers permuted": (steps_once, False),
    },
    "share": {
        "a factor of 1: no excess": (share_once, 1.0),
        "a factor of 1.3": (share_once, 1.3),
        "a factor of 3": (share_once, 3.0),
    },
    "same": {
        f"{name}, logits times {factor}": (same_once, factor, power)
        for name, power in (("calibrated", 1), ("overconfident", 2))
        for factor in (1.0001, 0.9999, 1 + 2e-8)
    },
    "mce": {
        f"ECE {error}, bins of {least}": (mce_once, error, least)
        for error in (0, 0.1)
        for least in (1, 30)
    },
    "accuracy": {
        "a loss at the margin": (accuracy_once, 0.06, 1),
        "a loss at the margin, clusters of 7": (accuracy_once, 0.06, 7),
        "a loss at the margin, few changes": (accuracy_once, 0.03, 1),
    },
    "chance": {
        "the commonest letter": (chance_once, 1, 0),
        "the commonest letter in .95": (chance_once, 0.95, 0),
        "varied letters": (chance_once, 0, 0),
        "knows .1": (chance_once, 0, 0.1),
        "one letter in .9, knows .1": (chance_once, 0.9, 0.1),
    },
    "phase": {
        "constant, calibrated": (phase_once, [*LATE, *[0.5] * 6], [0] * 9),
        "constant, 0.10": (phase_once, [*LATE, *[0.5] * 6], [0.1] * 9),
        "exchangeable layers": (phase_once, [*LATE, *[0.5] * 6], "exchangeable"),
        "falls, accuracy rises .03 a layer": (
            phase_once,
            [0.29, 0.32, 0.35, 0.38, 0.41, 0.44, 0.47, 0.5],
            [0.33, 0.33, 0.33, *SUBJECT],
        ),
        "falls, accuracy rises .02 a layer": (
            phase_once,
            [0.36, 0.38, 0.4, 0.42, 0.44, 0.46, 0.48, 0.5],
            [0.33, 0.33, 0.33, *SUBJECT],
        ),
        "falls, four layers, the first a quarter of the climb short": (
            phase_once,
            [*LATE, 0.4375, 0.5, 0.5, 0.5],
            [0.33, 0.33, 0.33, *SUBJECT[1:]],
        ),
        "a phase as measured, .335 to .062": (
            phase_once,
            [*LATE, *[0.5] * 5],
            [0.33, 0.33, 0.33, *SUBJECT],
        ),
        "a phase, .20 to .08": (phase_once, [*LATE, *[0.5] * 6], [0.12, 0.15, 0.18, *PHI]),
    },
}


def repeat(pool, function, repeats, n, *arguments):
    """Mean of what a simulation returns over so many seeds, by name."""
    tasks = [(seed, n, *arguments) for seed in range(repeats)]
    mapped = pool.map(function, *zip(*tasks, strict=True), chunksize=4)
    found = list(tqdm(mapped, total=repeats, leave=False, disable=None))
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def main():
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--part", choices=PARTS, action="append")
    made.add_argument("--repeats", type=int, default=400)
    made.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    args = made.parse_args()
    with ProcessPoolExecutor() as pool:
        for part in args.part or PARTS:
            for place, (name, (function, *arguments)) in enumerate(PARTS[part].items()):
                for n in args.sizes:
                    found = repeat(pool, function, args.repeats, n, *arguments)
                    if place == 0 and n == args.sizes[0]:
                        print(f"\n| {part} | n | {' | '.join(found)} |")
                        print("|---" * (len(found) + 2) + "|")
                    numbers = " | ".join(f"{value:.3f}" for value in found.values())
                    print(f"| {name} | {n} | {numbers} |", flush=True)


if __name__ == "__main__":
    main()
