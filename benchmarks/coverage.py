"""Are the intervals and the phase detector honest? Simulated models whose true errors are known.

A question has a true distribution p over four options, from which its answer is drawn. A reading
sees p with options swapped with probability s and answers with what then is its exact posterior, so
it is perfectly calibrated whatever s is; raised to a power and normalised, it is overconfident by a
known amount. Readings of one question share its p and its answer, as layers do.

    python benchmarks/coverage.py                 # all tables, some ten minutes on two cores
    python benchmarks/coverage.py --part floor --repeats 200
"""

import argparse
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from tqdm import tqdm

from layercal import calibration, phase, resampling

SIZES = (285, 1000, 4705)
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


def true_ece(swap, power, n=1_000_000):
    """ECE of a reading without sampling noise: correctness replaced by its chance."""
    rng = np.random.default_rng(1)
    p, _ = questions(rng, n)
    calibrated = reading(np.random.default_rng(2), p, swap, 1)
    said = reading(np.random.default_rng(2), p, swap, power)
    chance = np.take_along_axis(calibrated, said.argmax(-1)[:, None], -1)[:, 0]
    bins = calibration.bin_index(said.max(-1), 10)
    return np.abs(np.bincount(bins, chance - said.max(-1), 10)).sum() / n


def power_for(ece, swap, n=200_000):
    """Power at which a reading has this ECE."""
    low, high = 1.0, 6.0
    if ece == 0:
        return 1.0
    for _ in range(18):
        middle = (low + high) / 2
        low, high = (middle, high) if true_ece(swap, middle, n) < ece else (low, middle)
    return (low + high) / 2


PAIRS = {  # true ECE of reading a and of reading b
    "calibrated, calibrated": (0.0, 0.0),
    "0.20, calibrated": (0.20, 0.0),
    "0.20, 0.08": (0.20, 0.08),
    "0.10, 0.10": (0.10, 0.10),
    "0.03, calibrated": (0.03, 0.0),
}


def difference_once(seed, n, powers, swaps):
    rng = np.random.default_rng(seed)
    p, answer = questions(rng, n)
    weights = resampling.resample_weights(n, DRAWS, seed)
    a, b = (
        resampling.ece_sample(*pairs(reading(rng, p, swap, power), answer), weights)
        for swap, power in zip(swaps, powers, strict=True)
    )
    found = resampling.error_difference(a, b)
    both = (
        a.errors()[list(resampling.SCALES).index(1)],
        b.errors()[list(resampling.SCALES).index(1)],
    )
    low, high = resampling.interval(found.value, both[0] - both[1])
    return found.low, found.high, found.p, low, high


def floor_once(seed, n):
    rng = np.random.default_rng(seed)
    confidence = rng.uniform(0.25, 1, n)
    return calibration.ece(confidence, rng.random(n) < confidence)


LAYERS = np.linspace(0.12, 0, 8)  # how often each layer sees options swapped
CURVES = {  # true ECE over the layers from the decision layer on
    "constant, calibrated": [0.0] * 8,
    "constant, 0.10": [0.10] * 8,
    "phi-2-like, 0.20 to 0.08": [0.12, 0.15, 0.18, 0.20, 0.18, 0.15, 0.11, 0.08],
}


def phase_once(seed, n, powers):
    rng = np.random.default_rng(seed)
    p, answer = questions(rng, n)
    readings = [
        pairs(reading(rng, p, swap, power), answer)
        for swap, power in zip(LAYERS, powers, strict=True)
    ]
    confidence, correct = (np.stack(part) for part in zip(*readings, strict=True))
    weights = resampling.resample_weights(n, DRAWS, seed)
    # a tolerance wide enough for every layer to count: the most layers to pick a peak from
    found = phase.detect(confidence, correct, weights, chance=0.25, tolerance=0.2)
    return found["exists"]


def repeat(pool, function, repeats, *arguments):
    tasks = [(seed, *arguments) for seed in range(repeats)]
    mapped = pool.map(function, *zip(*tasks, strict=True), chunksize=4)
    return np.array(list(tqdm(mapped, total=repeats, leave=False, disable=None)))


def main():
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--part", choices=["floor", "difference", "phase"], action="append")
    made.add_argument("--repeats", type=int, default=1000)
    args = made.parse_args()
    parts = args.part or ["floor", "difference", "phase"]
    with ProcessPoolExecutor() as pool:
        if "floor" in parts:
            print("ECE (10 bins) of a perfectly calibrated model, confidence even over [0.25, 1]")
            print("|    n | mean | 95th percentile |\n|---|---|---|")
            for n in SIZES:
                found = repeat(pool, floor_once, args.repeats, n)
                print(f"| {n} | {found.mean():.3f} | {np.quantile(found, 0.95):.3f} |", flush=True)
        if "difference" in parts:
            print("\nCoverage of 95 % intervals of ECE differences")
            print(
                "| true ECE of the two | n | test inversion | width | p <= 0.05 | basic bootstrap |"
            )
            print("|---|---|---|---|---|---|")
            swaps = (0.1, 0.0)
            for name, errors in PAIRS.items():
                powers = [power_for(e, s) for e, s in zip(errors, swaps, strict=True)]
                truth = true_ece(swaps[0], powers[0]) - true_ece(swaps[1], powers[1])
                for n in SIZES:
                    found = repeat(pool, difference_once, args.repeats, n, powers, swaps)
                    low, high, p, basic_low, basic_high = found.T
                    print(
                        f"| {name} | {n} | {((low <= truth) & (truth <= high)).mean():.3f} "
                        f"| {(high - low).mean():.3f} | {(p <= 0.05).mean():.3f} "
                        f"| {((basic_low <= truth) & (truth <= basic_high)).mean():.3f} |",
                        flush=True,
                    )
        if "phase" in parts:
            print("\nShare of models in which a phase is found")
            print("| true ECE over 8 layers | n | found |\n|---|---|---|")
            for name, curve in CURVES.items():
                powers = [power_for(e, s) for e, s in zip(curve, LAYERS, strict=True)]
                for n in SIZES:
                    found = repeat(pool, phase_once, args.repeats, n, powers)
                    print(f"| {name} | {n} | {found.mean():.3f} |", flush=True)


if __name__ == "__main__":
    main()
