"""Measure what attention and MLP of each block do to calibration."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from layercal import files, results
from layercal.ablation.table import NOTHING, Ablated, ablations
from layercal.metrics.scoring import Scoring
from layercal.results import PARTS
from layercal.stages import Output


def measure_blocks(
    *,
    prompts: Path,
    logits: list[Path],
    accuracy_margin: float = 0.02,
    n_bins: int = 10,
    draws: int = 1000,
    seed: int = 0,
    table: Output,
) -> None:
    """Compare the whole network with what is left without each part, a row a part."""
    run = results.Run.load(prompts)
    shards, order = run.shards(logits)
    if "blocks" in shards[0]:
        whole, without = (
            torch.cat([shard[name] for shard in shards])[order].numpy()
            for name in ("whole", "without")
        )
        named = {
            Ablated(name=f"{part} {block}", what="block", block=block, part=part): read
            for place, block in enumerate(shards[0]["blocks"].tolist())
            for part, read in zip(PARTS, without[:, place].swapaxes(0, 1), strict=True)
        }
        scoring = Scoring.of_prompts(
            run.prompts, accuracy_margin=accuracy_margin, n_bins=n_bins, draws=draws, seed=seed
        )
        run.write(table, pd.DataFrame(ablations(scoring, whole, named)))
    else:
        run.write(table, NOTHING)
    files.keep_shards(logits[0].parent, "blocks", len(logits))
