"""Evaluate the steered readings: dose-response with intervals, and the cross-fitted verdicts."""

import json
from pathlib import Path

import pandas as pd
import torch

from layercal import evaluation, sources, stages


def main() -> None:
    """Run the stage."""
    made = stages.parser("sweep", __doc__)
    made.add_argument("--prompts", type=Path, required=True)
    made.add_argument("--directions", type=Path, required=True, help="directions.safetensors")
    made.add_argument("--logits", type=Path, nargs="+", required=True, help="shards, in order")
    made.add_argument("--estimators", nargs="+", default=["update-mean"])
    made.add_argument("--alphas", type=float, nargs="+", required=True)
    made.add_argument("--accuracy-margin", type=float, default=0.02)
    made.add_argument("--n-bins", type=int, default=10)
    made.add_argument("--draws", type=int, default=1000)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, required=True, help="sweep.parquet to write")
    made.add_argument("--summary", type=Path, required=True, help="summary.json to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Gather the shards in order and write the tidy sweep and its summary."""
    fitted, prompts = sources.load_tensors(args.directions), pd.read_parquet(args.prompts)
    shards = [sources.load_tensors(path) for path in args.logits]
    layers = shards[0].pop("layers").tolist()
    sweep = evaluation.Sweep(
        logits={
            mode: torch.cat([shard[mode] for shard in shards]).numpy()
            for mode in shards[0]
            if mode != "layers"
        },
        answer=prompts["answer"].to_numpy(),
        fold=fitted["fold"].numpy(),
        cluster=pd.factorize(prompts["cluster"])[0],
        norms=fitted["norms"].diagonal().mean(-1).numpy(),
        estimators=args.estimators,
        layers=layers,
        alphas=args.alphas,
        accuracy_margin=args.accuracy_margin,
        n_bins=args.n_bins,
        draws=args.draws,
        seed=args.seed,
    )
    sources.write_atomically(args.out, evaluation.dose_response(sweep).to_parquet(index=False))
    summary = evaluation.summarise(sweep)
    sources.write_atomically(args.summary, json.dumps(summary, indent=2) + "\n")
    for row in summary:
        stages.log.info("%s", row["verdict"])


if __name__ == "__main__":
    main()
