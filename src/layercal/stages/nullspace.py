"""Where the stream lies in the unembedding's null space, and what its entropy neurons do to ECE."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from layercal import InputError, results, stages
from layercal.ablation import neurons, nullspace
from layercal.ablation.table import Ablated, ablations
from layercal.metrics import scoring


def main() -> None:
    """Run the stage."""
    made = stages.parser("nullspace", __doc__)
    stages.add_model_options(made)
    made.add_argument("--prompts", type=Path, required=True)
    made.add_argument("--residuals", type=Path, nargs="+", required=True, help="shards, in order")
    made.add_argument("--rules", nargs="+", required=True, help="k=<int> or energy=<share>")
    made.add_argument("--neurons", type=int, default=10, help="entropy neurons to ablate")
    made.add_argument("--random", type=int, default=20, help="control sets as large")
    made.add_argument("--n-bins", type=int, default=10)
    made.add_argument("--draws", type=int, default=1000)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--shares", type=Path, required=True, help="nullspace.parquet to write")
    made.add_argument("--out", type=Path, required=True, help="neurons.parquet to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Write shares over depth, and ablations of entropy neurons and of random control sets."""
    run = results.Run.load(args.prompts)
    prompts, (shards, order) = run.prompts, run.shards(args.residuals)
    model = stages.load_model(args)
    residuals = results.Residuals([shard["residuals"] for shard in shards], order)
    unembedding = nullspace.effective_unembedding(model)
    shares = nullspace.null_shares(residuals, unembedding, args.rules)
    try:
        last = neurons.find_neurons(model)
        active = torch.cat([shard["neurons"] for shard in shards if len(shard["rows"])])
        active = active[order].float()
        table = neurons.describe(model, last, unembedding, args.rules)
        effects = _effects(args, prompts, model, last, table, residuals[:, -1].float(), active)
    except InputError as error:
        stages.log.info("entropy neurons left out: %s", error)
        effects = pd.DataFrame({"without": pd.Series(dtype=str)})
    run.write(args.shares, shares)
    run.write(args.out, effects)


def _effects(args, prompts, model, last, table, final, active) -> pd.DataFrame:
    """One row an entropy neuron, one for all, one a random set; with the norm live and frozen."""
    chosen = neurons.entropy_neurons(table, args.neurons)
    drawn = np.random.default_rng(args.seed)
    long = neurons.high_norm(table)["neuron"].to_numpy()
    groups = {Ablated(name=f"neuron {j}", what="neuron", neuron=j): [j] for j in chosen}
    together = f"all {len(chosen)} entropy neurons"
    groups[Ablated(name=together, what="entropy neurons")] = chosen
    for draw in range(args.random):
        random = Ablated(name=f"random set {draw:02d}", what="random neurons", draw=draw)
        groups[random] = drawn.choice(long, len(chosen), replace=False).tolist()
    means, option_ids = active.mean(0), torch.tensor(max(prompts["option_ids"], key=len))
    n_options = torch.tensor(prompts["option_ids"].map(len).to_numpy())
    lacking = torch.arange(len(option_ids)) >= n_options[:, None]

    def read(changed, frozen_at=None) -> np.ndarray:
        logits = model.option_logits(changed, option_ids, frozen_at).cpu()
        return logits.masked_fill(lacking, -torch.inf).numpy()

    without: dict[str, dict] = {"live": {}, "frozen": {}}
    changed = neurons.without_neurons(last, final, active, means, groups.values())
    for group, one in zip(groups, changed, strict=True):
        without["live"][group], without["frozen"][group] = read(one), read(one, final)
    scored = scoring.Scoring(
        answer=prompts["answer"].to_numpy(),
        cluster=pd.factorize(prompts["cluster"])[0],
        question=pd.factorize(prompts["question_id"])[0],
        n_bins=args.n_bins,
        draws=args.draws,
        seed=args.seed,
    )
    rows = []
    for norm, readings in without.items():
        rows += [{**row, "norm": norm} for row in ablations(scored, read(final), readings)]
    described = table.set_index("neuron").loc[chosen].add_prefix("neuron_")
    return pd.DataFrame(rows).merge(described, "left", left_on="neuron", right_index=True)


if __name__ == "__main__":
    main()
