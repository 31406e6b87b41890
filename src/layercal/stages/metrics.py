"""Compute calibration metrics per layer and group, and decide on the correction phase."""

import json
from pathlib import Path

import pandas as pd

from layercal import files, results, stages
from layercal.metrics import accuracy, phase, readings, resampling

# what DVC prints, compares and draws, and Git keeps
NUMBERS = (
    "n",
    "accuracy_final",
    "ece_final",
    "ece_peak",
    "correction",
    "decision_layer",
    "peak_layer",
    "final_layer",
)
CURVES = ("accuracy", "confidence", "ece")


def main() -> None:
    """Run the stage."""
    made = stages.parser("metrics", __doc__)
    made.add_argument("--prompts", type=Path, required=True)
    made.add_argument("--options", type=Path, required=True, help="options.parquet")
    made.add_argument("--tuned", type=Path, required=True, help="tuned.parquet")
    made.add_argument("--n-bins", type=int, nargs="+", default=[10])
    made.add_argument("--min-count", type=int, nargs="+", default=[1], help="for MCE")
    made.add_argument("--draws", type=int, default=1000, help="resamples")
    made.add_argument("--min-group", type=int, default=30, help="questions a group needs")
    made.add_argument("--tolerance", type=float, default=0.02, help="of the decision layer")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, required=True, help="metrics.parquet to write")
    made.add_argument("--phase", type=Path, required=True, help="phase.json to write")
    made.add_argument("--numbers", type=Path, required=True, help="headline numbers (JSON)")
    made.add_argument("--curves", type=Path, required=True, help="layer curves (CSV)")
    stages.run(stage, made)


def stage(args) -> None:
    """Write the tidy metric table and the phase."""
    run = results.Run.load(args.prompts)
    prompts = run.prompts.drop_duplicates("question_id")
    groups, cluster = readings.groups(prompts), pd.factorize(prompts["cluster"])[0]
    settings = (args.n_bins, args.min_count, args.draws, args.seed)
    weights = resampling.cluster_weights(cluster, args.draws, args.seed)
    tables, phases = [], {}
    for lens, path in (("logit", args.options), ("tuned", args.tuned)):
        orders = readings.from_options(run.by_prompt(path), cluster)
        for order, read in orders.items():
            table = readings.group_table(read, groups, args.min_group, settings, args.threads)
            tables.append(table.assign(lens=lens, order=order))
        order, read = next(iter(orders.items()))
        known = accuracy.above_chance(
            read.logits[-1].argmax(-1),
            read.answer,
            read.n_options[-1],
            cluster,
            args.draws,
            args.seed,
        )
        pair = read.confidence, read.correct, weights, known
        phases[lens] = phase.detect(*pair, args.tolerance, args.n_bins[0], cluster)
    found = {**phases["logit"], "order": order, "tuned": phases["tuned"]}
    table = pd.concat(tables)
    table["primary"] = table["order"].eq(order) & table["n_bins"].isin([0, args.n_bins[0]])
    run.write(args.out, table)
    run.write(args.phase, found)
    numbers = {name: found[name] for name in NUMBERS}
    files.write_atomically(args.numbers, json.dumps(numbers, indent=2) + "\n")
    files.write_atomically(args.curves, _curves(table).to_csv())
    stages.log.info("%s", found["reason"])


def _curves(table: pd.DataFrame) -> pd.DataFrame:
    """One row a layer, through the logit lens, over all questions."""
    shown = results.select(table, CURVES)
    return shown.pivot_table(index="layer", columns="metric", values="value")[[*CURVES]]


if __name__ == "__main__":
    main()
