"""The full metric table against netcal and torchmetrics called in a loop over the same cells.

A cell is one layer of one group in one resample, and again in one draw of the null floor. In each
cell the loops compute the binned errors that the library has: ECE and MCE at 10 and 15 bins and
class-wise ECE, netcal equal-mass ECE too. They are timed on a random sample of cells, checked
against ours there, and their time is scaled up to all cells.

    python benchmarks/metrics.py
"""

import argparse
import resource
import time

import numpy as np
import pandas as pd
import torch
from netcal.metrics import ECE, MCE
from torchmetrics.functional.classification import binary_calibration_error
from tqdm import tqdm

from layercal.metrics import calibration, readings

LAYERS, DRAWS = 33, 1000
CATEGORIES = [3018, 4705, 3077, 3242]  # sizes of MMLU's categories, 14,042 questions in all


def study(rng):
    """Readings of MMLU's size, and its 62 groups: all, 4 categories, 57 subjects."""
    n = sum(CATEGORIES)
    prompts = pd.DataFrame(
        {
            "category": np.repeat(np.arange(4), CATEGORIES).astype(str),
            "subject": (np.arange(n) * 57 // n).astype(str),
            "language": "en",
        }
    )
    logits = rng.normal(size=(LAYERS, n, 4)) * np.linspace(0.5, 3, LAYERS)[:, None, None]
    extra = {name: rng.random((LAYERS, n)) for name in ("option_mass", "entropy")}
    read = readings.Readings(logits, rng.integers(0, 4, n), extra)
    return read, readings.groups(prompts)


BINS = (10, 15)


def netcal_loop(confidence, correct, probability, answer):
    found = [ECE(bins).measure(confidence, correct) for bins in BINS]
    found += [MCE(bins).measure(confidence, correct) for bins in BINS]
    ECE(10, equal_intervals=False).measure(confidence, correct)  # edges interpolated: not compared
    by_option = [
        ECE(10).measure(probability[:, k].copy(), (answer == k).astype(int)) for k in range(4)
    ]
    return [*found, np.mean(by_option)]


def torchmetrics_loop(confidence, correct, probability, answer):
    pair = torch.tensor(confidence), torch.tensor(correct)
    found = [
        binary_calibration_error(*pair, n_bins=bins, norm=norm).item()
        for norm in ("l1", "max")
        for bins in BINS
    ]
    p, right = torch.tensor(probability.T).contiguous(), torch.tensor(answer)
    by_option = [
        binary_calibration_error(p[k], (right == k).int(), n_bins=10).item() for k in range(4)
    ]
    return [*found, np.mean(by_option)]


LOOPS = {"netcal": netcal_loop, "torchmetrics": torchmetrics_loop}
BINNED = {"netcal": 6, "torchmetrics": 5}


def main():
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--cells", type=int, default=600, help="cells on which the loops are timed")
    made.add_argument("--threads", type=int, default=2)
    args = made.parse_args()
    rng = np.random.default_rng(0)
    read, groups = study(rng)
    start = time.perf_counter()
    table = readings.group_table(
        read,
        groups,
        30,
        n_bins=[10, 15],
        min_count=[1, 30],
        draws=DRAWS,
        seed=0,
        threads=args.threads,
    )
    ours = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    names, spent = list(groups), dict.fromkeys(LOOPS, 0.0)
    for _ in tqdm(range(args.cells), desc="loops", disable=None):
        part = read.take(groups[names[rng.integers(len(names))]]).layer(int(rng.integers(LAYERS)))
        rows = rng.integers(0, len(part.answer), len(part.answer))  # a resample
        probability, answer = np.exp(part.log_probability[rows]), part.answer[rows]
        confidence, correct = part.confidence[rows], part.correct[rows].astype(int)
        ours_here = [calibration.ece(confidence, correct, bins) for bins in BINS]
        ours_here += [calibration.mce(confidence, correct, bins) for bins in BINS]
        ours_here += [calibration.classwise_ece(probability, answer)]
        for name, loop in LOOPS.items():
            begin = time.perf_counter()
            theirs = loop(confidence, correct, probability, answer)
            spent[name] += time.perf_counter() - begin
            np.testing.assert_allclose(theirs, ours_here, atol=1e-5)

    cells = LAYERS * len(names) * DRAWS * 2  # each resample, each draw of the null floor
    metrics = table.groupby(["metric", "n_bins"]).ngroups
    print(f"full table: {LAYERS} layers x {len(names)} groups x {DRAWS} resamples of ", end="")
    print(f"{len(read.answer)} questions, {metrics} metrics with intervals and null floors")
    print("| what | seconds | ratio |\n|---|---|---|")
    print(f"| layercal, {metrics} metrics | {ours:.1f} | 1 |")
    for name, seconds in spent.items():
        whole = seconds / args.cells * cells
        print(f"| loop over {name}, {BINNED[name]} of them | {whole:.0f} | {whole / ours:.0f} |")
    print(f"peak memory {memory:.2f} GB")


if __name__ == "__main__":
    main()
