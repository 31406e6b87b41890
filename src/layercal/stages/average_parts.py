"""Average what attention and MLP of each block write: what they are ablated at."""

from __future__ import annotations

from functools import reduce
from pathlib import Path

import torch

from layercal import results
from layercal.stages import Output


def average_parts(*, prompts: Path, residuals: list[Path], means: Output) -> None:
    """Write ``means`` (L, 2, d) over all prompts; nothing where the parts cannot be told."""
    run = results.Run.load(prompts)
    shards, order = run.shards(residuals)
    written = [shard["written"] for shard in shards if "written" in shard]
    averaged = {"means": (reduce(torch.add, written) / len(order)).float()} if written else {}
    run.write(means, averaged)
