"""Read prompts of one shard without attention or MLP of each block above the peak of ECE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from layercal import results
from layercal.ablation.blocks import without_parts
from layercal.metrics.phase import Phase
from layercal.model.fetched import load_fetched
from layercal.results import PARTS
from layercal.stages import Output


def ablate_blocks(
    *,
    manifest: Path,
    prompts: Path,
    residuals: Path,
    means: Path,
    phase: Path,
    shard: int,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str = "none",
    threads: int | None = None,
    logits: Output,
) -> None:
    """Write final logits of the ``whole`` network and ``without`` each part, at its mean.

    ``whole`` (n, options) and ``without`` (n, blocks, 2, options) are -inf where a question has no
    such option; ``blocks`` are the numbers of the blocks, ``rows`` (n) the places of the questions
    among all prompts. Nothing but ``rows`` where the parts of a block cannot be told.
    """
    run = results.Run.load(prompts)
    read, at = run.read(residuals), run.read(means)
    reached = Phase.from_json(run.read(phase))
    if not len(read["rows"]) or not at:
        run.write(logits, {"rows": read["rows"]})
        return
    model = load_fetched(manifest, dtype, device, quantize, threads)
    lowest = min(reached.peak_layer + 1, model.n_layers)
    above = at["means"][lowest - 1 :]
    n_options = run.n_options.max()
    whole = torch.full((len(read["rows"]), n_options), -torch.inf)
    without = torch.full((len(whole), len(above), len(PARTS), n_options), -torch.inf)
    label = f"{manifest.parent.name}: ablating blocks, shard {shard}"
    for place, row in enumerate(tqdm(read["rows"].tolist(), label, unit="prompt", disable=None)):
        prompt = run.prompts.iloc[row]
        # from the residuals that the lens reads
        held = read["residuals"][place].to(model.device)
        prefix = replace(model.prefix(torch.tensor(prompt["input_ids"])), residuals=held)
        option_ids = torch.tensor(prompt["option_ids"])
        here = slice(len(option_ids))
        whole[place, here] = model.option_logits(held[-1].float(), option_ids).cpu()
        changed = without_parts(model, prefix, lowest, above)
        without[place, ..., here] = model.option_logits(changed, option_ids).cpu()
    blocks = torch.arange(lowest, model.n_layers + 1)
    run.write(logits, {"rows": read["rows"], "blocks": blocks, "whole": whole, "without": without})
