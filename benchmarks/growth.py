"""How seconds and peak memory grow: with questions, shards, steered layers and scales.

Prompts are 16 to 80 random tokens, so that none begins like another. Extraction runs in shards of
``--shard`` prompts; ``in one shard`` shows what it costs not to. Each shard of a study is a job
that loads the model: this is counted over shards. All is measured ``--repeats`` times in turn.
Draws ``docs/growth.png`` and prints its data as a Markdown table, medians with the lowest and the
highest in brackets. Runs after ``make study``:

    python benchmarks/growth.py
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from memory import measured
from torch.nn.functional import normalize
from tqdm import tqdm

from layercal.model import extract, load
from layercal.report import style
from layercal.steering import interventions
from layercal.steering.fitted import Direction, Fitted

DIRECTIONS, FOLDS, CONTROLS = 5, 5, 20
MEDIAN = {"estimator": "median", "errorbar": ("pi", 100)}


def drawn_prompts(n, vocabulary):
    """Prompts of random tokens, (n) lists."""
    drawn = np.random.default_rng(0)
    return [drawn.integers(vocabulary, size=drawn.integers(16, 81)).tolist() for _ in range(n)]


def extracted(read, prompts, shard):
    """Read all prompts, a shard at a time; each is done with before the next, as in a job."""
    for start in range(0, len(prompts), shard):
        extract.read(read, prompts[start : start + shard])


def in_jobs(folder, dtype, prompts, shards):
    """The same prompts in so many jobs, each loading the model."""
    for shard in range(shards):
        extract.read(load(folder, dtype, "cpu"), prompts[shard::shards])


def made_up(read, layers):
    """Directions like those of a study, at the uppermost layers."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(DIRECTIONS, FOLDS, FOLDS, 1, read.width, generator=generator)
    drawn /= drawn.norm(dim=-1, keepdim=True)
    named = [
        Direction(name=f"made-up {i}", kind="estimator", estimator="made-up")
        for i in range(DIRECTIONS)
    ]
    subspace = named[0].as_control("rescale")
    fits = dict(zip(named, drawn.unsqueeze(4), strict=True))
    random = torch.randn(layers, CONTROLS, read.width, generator=generator)
    return Fitted(
        directions=fits | {subspace: drawn[0].unsqueeze(3)},
        controls=normalize(random, dim=-1),
        norms=torch.ones(FOLDS, FOLDS, read.n_layers + 1),
        layers=range(read.n_layers - layers, read.n_layers),
    )


def swept(read, prompts, layers, scales):
    """Sweep some prompts."""
    fitted, alphas = made_up(read, layers), torch.linspace(0, 2, scales).tolist()
    for ids in prompts:
        option_ids = torch.arange(4)
        prefix = read.prefix(torch.tensor(ids))
        interventions.sweep_prompt(
            read, prefix, option_ids, fitted, 0, alphas, ["lens", "through-network"]
        )


def grow(folder, args):
    """One row a measurement: what grew, in which way, to how much, seconds, peak memory in MB."""
    read = load(folder, args.dtype, "cpu")
    prompts = drawn_prompts(max(args.n), read.head.out_features)
    least, few = prompts[: args.n[0]], prompts[: args.swept]
    of_shards, sweep = f"{len(least)} questions, with loading", f"sweep of {len(few)} questions"
    extracted(read, few, len(few))  # the first run of anything is slower
    swept(read, few, 1, 2)
    runs = [
        ("questions", way, n, extracted, read, prompts[:n], size)
        for n in args.n
        for way, size in ((f"shards of {args.shard}", args.shard), ("in one shard", n))
    ]
    runs += [
        ("shards", of_shards, shards, in_jobs, folder, args.dtype, least, shards)
        for shards in (1, 2, 4, 8)
    ]
    runs += [
        ("steered layers", f"{sweep}, 7 scales", layers, swept, read, few, layers, 7)
        for layers in (1, 2, 4, 8)
    ]
    runs += [
        ("scales", f"{sweep}, 8 layers", scales, swept, read, few, 8, scales)
        for scales in (3, 7, 13, 25)
    ]
    rows = []
    for what, way, size, act, *arguments in tqdm(args.repeats * runs, disable=None):
        _, seconds, memory = measured(act, *arguments)
        rows.append((what, way, size, seconds, memory))
    return pd.DataFrame(rows, columns=["what", "way", "size", "seconds", "memory"])


def draw(table, title):
    """Seconds above, memory below; a column each for what grows."""
    style.theme()
    names = list(table["what"].unique())
    figure = Figure(figsize=(3.2 * len(names), 5.6), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False)
    labels = {"seconds": "seconds", "memory": "peak memory, MB"}
    for (row, (measure, label)), (column, name) in product(
        enumerate(labels.items()), enumerate(names)
    ):
        axis, of = axes[row, column], table[table["what"] == name]
        many = len(set(of["way"])) > 1
        shown = {"hue": "way", "marker": "o", "legend": many and not row, **MEDIAN}
        sns.lineplot(of, x="size", y=measure, ax=axis, **shown)
        axis.set(xlabel=name if row else "", ylabel=label if not column else "")
        if many:  # sizes that span orders of magnitude
            axis.set(xscale="log", yscale="linear" if row else "log")
        else:
            axis.set_xticks(of["size"].unique())
        if axis.get_yscale() == "linear":
            axis.set_ylim(0, None)
        if not row:
            axis.set_title("extraction" if many else of["way"].iloc[0], fontsize="medium")
            if many:
                axis.legend(title=None, fontsize="small")
    figure.suptitle(title)
    return figure


def main():
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--model", default="smollm2-135m")
    made.add_argument("--n", type=int, nargs="+", default=[100, 1000, 10_000])
    made.add_argument("--shard", type=int, default=100, help="prompts of a shard")
    made.add_argument("--swept", type=int, default=8, help="prompts that are steered")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--dtype", default="auto", help="as in the config of a study")
    made.add_argument("--out", type=Path, default=Path("docs/growth.png"))
    args = made.parse_args()
    table = grow(Path("resources/models") / args.model, args)
    title = f"{args.model}, dtype {args.dtype}, {torch.get_num_threads()} threads"
    draw(table, title).savefig(args.out, dpi=120)
    print(f"{title}\n\n| what grows | | to | seconds | peak memory, MB |\n|---|---|---|---|---|")
    for (what, way, size), of in table.groupby(["what", "way", "size"], sort=False):
        cells = [
            f"{one.median():.3g} ({one.min():.3g}-{one.max():.3g})"
            for one in (of["seconds"], of["memory"])
        ]
        print(f"| {what} | {way} | {size} | {cells[0]} | {cells[1]} |")


if __name__ == "__main__":
    main()
