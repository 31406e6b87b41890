"""What the entropy neurons of the last block do to calibration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from layercal import InputError, results
from layercal.ablation import neurons, nullspace
from layercal.ablation.table import NOTHING, Ablated, ablations
from layercal.metrics.scoring import Scoring
from layercal.model.fetched import load_fetched
from layercal.model.lens import read_options
from layercal.stages import Output, log


def ablate_neurons(
    *,
    manifest: Path,
    prompts: Path,
    residuals: list[Path],
    rules: list[str],
    n_neurons: int = 10,
    random: int = 20,
    accuracy_margin: float = 0.02,
    n_bins: int = 10,
    draws: int = 1000,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str = "none",
    threads: int | None = None,
    table: Output,
) -> None:
    """Write readings with entropy neurons, and random sets of as many, at their mean."""
    run = results.Run.load(prompts)
    shards, order = run.shards(residuals)
    model = load_fetched(manifest, dtype, device, quantize, threads)
    scoring = Scoring.of_prompts(
        run.prompts, accuracy_margin=accuracy_margin, n_bins=n_bins, draws=draws, seed=seed
    )
    options = torch.tensor(run.option_ids), torch.tensor(run.n_options)
    try:
        last = neurons.find_neurons(model)
        active = torch.cat([shard["neurons"] for shard in shards])
        described = neurons.describe(model, last, nullspace.effective_unembedding(model), rules)
        rows = _effects(
            scoring,
            lambda h, frozen_at=None: read_options(model, h, *options, frozen_at),
            last,
            _sets(described, n_neurons, random, seed),
            final=results.Residuals([shard["residuals"] for shard in shards], order)[:, -1].float(),
            active=active[order].float(),
        )
    except InputError as error:
        log.info("entropy neurons left out: %s", error)
        run.write(table, NOTHING)
    else:
        each = described.set_index("neuron").add_prefix("neuron_")
        run.write(table, rows.merge(each, "left", left_on="neuron", right_index=True))


def _sets(described: pd.DataFrame, count: int, random: int, seed: int) -> dict[Ablated, list[int]]:
    """Each entropy neuron, all of them, and random sets of as many, all of long weights."""
    chosen, drawn = neurons.entropy_neurons(described, count), np.random.default_rng(seed)
    long = neurons.high_norm(described)["neuron"].to_numpy()
    sets = {Ablated(name=f"neuron {j}", what="neuron", neuron=j): [j] for j in chosen}
    together = f"all {len(chosen)} entropy neurons"
    sets[Ablated(name=together, what="entropy neurons")] = chosen
    for draw in range(random):
        control = Ablated(name=f"random set {draw:02d}", what="random neurons", draw=draw)
        sets[control] = drawn.choice(long, len(chosen), replace=False).tolist()
    return sets


def _effects(
    scoring: Scoring,
    read: Callable[..., np.ndarray],
    last: neurons.Neurons,
    sets: dict[Ablated, list[int]],
    *,
    final: torch.Tensor,
    active: torch.Tensor,
) -> pd.DataFrame:
    """A row a set of neurons, with the final norm live and with its scale frozen."""
    without: dict[str, dict] = {"live": {}, "frozen": {}}
    changed = neurons.without_neurons(last, final, active, active.mean(0), sets.values())
    for ablated, h in zip(sets, changed, strict=True):
        without["live"][ablated], without["frozen"][ablated] = read(h), read(h, final)
    return pd.DataFrame(
        {**row, "norm": norm}
        for norm, readings in without.items()
        for row in ablations(scoring, read(final), readings)
    )
