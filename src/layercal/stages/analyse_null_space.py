"""Where the stream lies in the unembedding's null space, and what its entropy neurons do to ECE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from layercal import InputError, results
from layercal.ablation import neurons, nullspace
from layercal.ablation.table import Ablated, ablations
from layercal.metrics import scoring
from layercal.model import LensModel
from layercal.model.fetched import load_fetched
from layercal.stages import Output, log


def analyse_null_space(
    *,
    manifest: Path,
    prompts: Path,
    residuals: list[Path],
    rules: list[str],
    n_neurons: int = 10,
    random: int = 20,
    n_bins: int = 10,
    draws: int = 1000,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str = "none",
    threads: int | None = None,
    effects: Output,
    shares: Output,
) -> None:
    """Write shares over depth, and ablations of entropy neurons and of random control sets."""
    run = results.Run.load(prompts)
    shards, order = run.shards(residuals)
    model = load_fetched(manifest, dtype, device, quantize, threads)
    stream = results.Residuals([shard["residuals"] for shard in shards], order)
    unembedding = nullspace.effective_unembedding(model)
    in_null_space = nullspace.null_shares(stream, unembedding, rules)
    try:
        last = neurons.find_neurons(model)
        active = torch.cat([shard["neurons"] for shard in shards if len(shard["rows"])])
        active = active[order].float()
        table = neurons.describe(model, last, unembedding, rules)
        scored = _scored(run.prompts, n_bins, draws, seed)
        final = stream[:, -1].float()
        ablated = _effects(
            run.prompts, scored, model, last, table, final, active, n_neurons, random
        )
    except InputError as error:
        log.info("entropy neurons left out: %s", error)
        ablated = pd.DataFrame({"without": pd.Series(dtype=str)})
    run.write(shares, in_null_space)
    run.write(effects, ablated)


def _scored(prompts: pd.DataFrame, n_bins: int, draws: int, seed: int) -> scoring.Scoring:
    return scoring.Scoring(
        answer=prompts["answer"].to_numpy(),
        cluster=pd.factorize(prompts["cluster"])[0],
        question=pd.factorize(prompts["question_id"])[0],
        n_bins=n_bins,
        draws=draws,
        seed=seed,
    )


def _effects(
    prompts: pd.DataFrame,
    scored: scoring.Scoring,
    model: LensModel,
    last: neurons.Neurons,
    table: pd.DataFrame,
    final: torch.Tensor,
    active: torch.Tensor,
    n_neurons: int,
    random: int,
) -> pd.DataFrame:
    """One row an entropy neuron, one for all, one a random set; with the norm live and frozen."""
    chosen = neurons.entropy_neurons(table, n_neurons)
    drawn = np.random.default_rng(scored.seed)
    long = neurons.high_norm(table)["neuron"].to_numpy()
    groups = {Ablated(name=f"neuron {j}", what="neuron", neuron=j): [j] for j in chosen}
    together = f"all {len(chosen)} entropy neurons"
    groups[Ablated(name=together, what="entropy neurons")] = chosen
    for draw in range(random):
        control = Ablated(name=f"random set {draw:02d}", what="random neurons", draw=draw)
        groups[control] = drawn.choice(long, len(chosen), replace=False).tolist()
    means, option_ids = active.mean(0), torch.tensor(max(prompts["option_ids"], key=len))
    n_options = torch.tensor(prompts["option_ids"].map(len).to_numpy())
    lacking = torch.arange(len(option_ids)) >= n_options[:, None]

    def read(changed: torch.Tensor, frozen_at: torch.Tensor | None = None) -> np.ndarray:
        logits = model.option_logits(changed, option_ids, frozen_at).cpu()
        return logits.masked_fill(lacking, -torch.inf).numpy()

    without: dict[str, dict] = {"live": {}, "frozen": {}}
    changed = neurons.without_neurons(last, final, active, means, groups.values())
    for group, one in zip(groups, changed, strict=True):
        without["live"][group], without["frozen"][group] = read(one), read(one, final)
    rows = []
    for norm, readings in without.items():
        rows += [{**row, "norm": norm} for row in ablations(scored, read(final), readings)]
    described = table.set_index("neuron").loc[chosen].add_prefix("neuron_")
    return pd.DataFrame(rows).merge(described, "left", left_on="neuron", right_index=True)
