"""How seconds and peak memory grow: with questions, shards, steered layers and scales.

Prompts are random tokens, as long as those of a study, so that none begins like another. Extraction
runs in shards of ``--shard`` prompts, as a study of any size should; ``in one shard`` shows what it
costs not to. Each shard of a study is a job that loads the model: this is counted over shards.
Draws ``docs/growth.png`` and prints its data as a Markdown table:

    python benchmarks/growth.py --model smollm2-135m
"""

import argparse
from itertools import product
from pathlib import Path

import pandas as pd
import seaborn as sns
import torch
from matplotlib.figure import Figure
from memory import measured
from tqdm import tqdm

from layercal import directions, extract, figures, steering
from layercal.model import load

DIRECTIONS, FOLDS, RANDOM = 5, 5, 20


def drawn_prompts(n, lengths, vocabulary):
    """Prompts of random tokens, (n) lists."""
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(lengths), (n,), generator=generator)
    return [
        torch.randint(vocabulary, (int(lengths[i]),), generator=generator).tolist() for i in chosen
    ]


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
    return {
        **{f"direction/{i:03d}/made-up": one for i, one in enumerate(drawn)},
        "subspace": drawn[:1].movedim(0, 3),
        "random": directions.random_directions(RANDOM, read.width, 0),
        "norms": torch.ones(FOLDS, FOLDS, read.n_layers + 1),
        "layers": torch.arange(read.n_layers - layers, read.n_layers),
    }


def swept(read, prompts, layers, scales):
    """Sweep some prompts."""
    fitted, alphas = made_up(read, layers), torch.linspace(0, 2, scales).tolist()
    for ids in prompts:
        option_ids = torch.arange(4)
        prefix = read.prefix(torch.tensor(ids))
        steering.sweep_prompt(
            read, prefix, option_ids, fitted, 0, alphas, ["lens", "through-network"]
        )


def grow(folder, args):
    """One row a measurement: what grew, in which way, to how much, seconds, peak memory in MB."""
    read = load(folder, args.dtype, "cpu")
    part = Path(f"results/extract/{args.model}/{args.questions}/prompts.parquet")
    lengths = pd.read_parquet(part)["n_tokens"].tolist()
    prompts = drawn_prompts(max(args.n), lengths, read.head.out_features)
    few = prompts[:8]
    extracted(read, few, 8)  # the first run of anything is slower
    swept(read, few[:1], 1, 2)
    runs = []
    for n in args.n:
        shards = {f"shards of {args.shard}": args.shard, "in one shard": n}
        runs += [
            ("questions", way, n, extracted, read, prompts[:n], size)
            for way, size in shards.items()
        ]
    for shards in (1, 2, 4, 8):
        some = prompts[: args.n[0]]
        way = f"{args.n[0]} questions"
        runs.append(("shards", way, shards, in_jobs, folder, args.dtype, some, shards))
    for layers in (1, 2, 4, 8):
        runs.append(("steered layers", "7 scales", layers, swept, read, few, layers, 7))
    for scales in (3, 7, 13, 25):
        runs.append(("scales", "8 layers", scales, swept, read, few, 8, scales))
    rows = []
    for what, way, size, act, *arguments in tqdm(runs, disable=None):
        _, seconds, memory = measured(act, *arguments)
        rows.append((what, way, size, seconds, memory))
    return pd.DataFrame(rows, columns=["what", "way", "size", "seconds", "memory"])


def draw(table, title):
    """Seconds above, memory below; a column each for what grows."""
    figures.theme()
    names = list(table["what"].unique())
    figure = Figure(figsize=(3 * len(names), 5.4), layout="constrained")
    axes = figure.subplots(2, len(names), squeeze=False)
    labels = {"seconds": "seconds", "memory": "peak memory above the model, MB"}
    for (row, (measure, label)), (column, name) in product(
        enumerate(labels.items()), enumerate(names)
    ):
        axis, of = axes[row, column], table[table["what"] == name]
        sns.lineplot(of, x="size", y=measure, hue="way", marker="o", ax=axis, legend=row == 0)
        axis.set(xlabel=name if row else "", ylabel=label if not column else "", ylim=(0, None))
        if name == "questions":
            axis.set_xscale("log")
        else:
            axis.set_xticks(sorted(of["size"]))
        if not row:
            axis.legend(title=None, fontsize="small")
    figure.suptitle(title)
    return figure


def main():
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--model", default="smollm2-135m")
    made.add_argument("--questions", default="mmlu-dev", help="whose lengths prompts have")
    made.add_argument("--n", type=int, nargs="+", default=[100, 1000, 10_000])
    made.add_argument("--shard", type=int, default=100, help="prompts of a shard")
    made.add_argument("--dtype", default="auto", help="as in the config of a study")
    made.add_argument("--out", type=Path, default=Path("docs/growth.png"))
    args = made.parse_args()
    table = grow(Path("resources/models") / args.model, args)
    title = f"{args.model}, {torch.get_num_threads()} threads"
    draw(table, title).savefig(args.out, dpi=120)
    print(f"{title}\n\n| what | | | seconds | peak memory, MB |\n|---|---|---|---|---|")
    for row in table.itertuples():
        print(f"| {row.what} | {row.way} | {row.size} | {row.seconds:.1f} | {row.memory:.0f} |")


if __name__ == "__main__":
    main()
