"""Fit calibration directions, cross-fitted, and draw their random controls."""

from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save

from layercal import directions, questions, sources, stages


def main() -> None:
    """Run the stage."""
    made = stages.parser("directions", __doc__)
    made.add_argument("--prompts", type=Path, required=True)
    made.add_argument("--residuals", type=Path, nargs="+", required=True, help="shards, in order")
    made.add_argument(
        "--estimators", nargs="+", choices=sorted(directions.ESTIMATORS), default=["update-mean"]
    )
    made.add_argument("--blocks", type=int, default=3, help="block updates, from the last")
    made.add_argument("--folds", type=int, default=5)
    made.add_argument("--random", type=int, default=20, help="random control directions")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, required=True, help="directions.safetensors to write")
    made.add_argument("--table", type=Path, required=True, help="directions.parquet to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Write the vectors, the mean residual norms each fit saw, and a table of the fits."""
    clusters = pd.read_parquet(args.prompts)["cluster"].tolist()
    residuals = torch.cat([sources.load_tensors(path)["residuals"] for path in args.residuals])
    fold = torch.tensor(questions.folds(clusters, args.folds, args.seed))
    written = {
        "fold": fold,
        "random": directions.random_directions(args.random, residuals.shape[-1], args.seed),
        "norms": directions.cross_fit(directions.mean_norms, residuals, fold, args.folds),
    }
    rows = []
    for name in args.estimators:

        def fit(some, estimate=directions.ESTIMATORS[name]):
            return estimate(some, args.blocks)

        written[name] = directions.cross_fit(fit, residuals, fold, args.folds)
        rows += directions.describe(name, written[name], residuals, args.blocks)
    sources.write_atomically(args.out, save(written))
    sources.write_atomically(args.table, pd.DataFrame(rows).to_parquet(index=False))


if __name__ == "__main__":
    main()
