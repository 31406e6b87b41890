"""Extract the residual stream at the answer position, all layers, for one shard of the prompts."""

from __future__ import annotations

from pathlib import Path

import torch

from layercal import files, results
from layercal.model import extract
from layercal.model.fetched import load_fetched
from layercal.stages import Output, log


def extract_residuals(
    *,
    manifest: Path,
    prompts: Path,
    shard: int = 0,
    shards: int = 1,
    batch_tokens: int = 2048,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str = "none",
    threads: int | None = None,
    residuals: Output,
) -> None:
    """Check the gate on the first prompt, then extract and write the shard at once."""
    run = results.Run.load(prompts)
    input_ids = run.prompts["input_ids"].tolist()
    model = load_fetched(manifest, dtype, device, quantize, threads)
    gate = model.check_gate(torch.tensor(input_ids[0]))
    log.info("gate: lens at L differs from the model's own logits by %.3g", gate)
    found = extract.read(
        model,
        input_ids,
        batch_tokens,
        shard,
        shards,
        f"{manifest.parent.name}: residuals, shard {shard}",
        torch.tensor(run.option_ids),
    )
    if len(found["rows"]) and "neurons" not in found:
        log.info(
            "what its blocks or neurons write cannot be told: no ablation of %s",
            "neurons" if "written" in found else "either",
        )
    if "written" in found and "mid_logits" not in found:
        log.info("its attention and MLP read the same stream: there is none between them")
    run.write(residuals, found)
    files.keep_shards(residuals.parent, "residuals", shards)
