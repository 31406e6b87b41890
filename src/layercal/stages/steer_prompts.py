"""Steer the prompts of one shard over all directions, layers, scales and modes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad
from tqdm import tqdm

from layercal import results
from layercal.ablation import blocks
from layercal.model.fetched import load_fetched
from layercal.stages import Output
from layercal.steering import interventions, tally


def steer_prompts(
    *,
    manifest: Path,
    prompts: Path,
    residuals: list[Path],
    directions: Path,
    shard: int,
    alphas: list[float],
    modes: list[str],
    n_bins: int = 10,
    chunk: int = 512,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str = "none",
    threads: int | None = None,
    logits: Output,
) -> None:
    """Write, per mode, logits of shape (n, directions, layers, alphas, options).

    They are -inf for options that a question has not. The directions of a question are, for each
    variant of ``interventions.variants``, its K fits (one an outer fold), then the first control,
    which those with the final norm frozen have not. ``{mode}-growth`` (n, K, layers, alphas) is by
    what the primary direction grows the final norm's scale; ``{mode}-controls`` (cells, layers, R,
    alphas, sums) is all that is kept of the controls. ``without`` (n, blocks, 2, options) is read
    with attention or MLP of one of the blocks above the first layer at its mean. ``rows`` (n) are
    the places of the questions among all prompts.
    """
    run = results.Run.load(prompts)
    fitted = run.read(directions)
    inside = (run.prompts["shard"] == shard).to_numpy()
    stream = results.Residuals.load(residuals, run)
    model = load_fetched(manifest, dtype, device, quantize, threads)
    n_options = run.prompts["option_ids"].map(len).max()
    cells = tally.cells(run.prompts, fitted["fold"].numpy())
    read: dict[str, list[torch.Tensor]] = {}
    sums: dict[str, np.ndarray] = {}
    label = f"{manifest.parent.name}: steering, shard {shard}"
    for row in tqdm(inside.nonzero()[0], desc=label, unit="prompt", disable=None):
        prompt = run.prompts.iloc[row]
        found = _one(
            model,
            fitted,
            prompt,
            stream.of_question(row),
            row,
            alphas=alphas,
            modes=modes,
            chunk=chunk,
        )
        for mode in modes:
            controls = found.pop(mode + interventions.CONTROLS).transpose(0, 1)
            answer = run.prompts["answer"].iloc[[row]].to_numpy()
            added = tally.score_rows(controls.numpy()[..., None, :], answer, n_bins)[..., 0, :]
            if mode not in sums:
                sums[mode] = np.zeros((cells.max() + 1, *added.shape), np.int64)
            sums[mode][cells[row]] += tally.in_units(added)
            found[mode] = torch.cat([found[mode], controls[None, :, 0]])
        lacking = (0, n_options - len(prompt["option_ids"]))
        for name, one in found.items():
            if not name.endswith(interventions.GROWTH):
                one = pad(one, lacking, value=-torch.inf)
            read.setdefault(name, []).append(one)
    written = {name: torch.stack(one) for name, one in read.items()}
    written |= {mode + interventions.CONTROLS: torch.from_numpy(one) for mode, one in sums.items()}
    run.write(logits, {"rows": torch.tensor(inside.nonzero()[0]), **written})


def _one(
    model, fitted, prompt, residuals: torch.Tensor, row: int, *, alphas, modes, chunk: int
) -> dict:
    """All readings of one prompt, from the residuals that the lens reads."""
    option_ids = torch.tensor(prompt["option_ids"])
    prefix = model.prefix(torch.tensor(prompt["input_ids"]))
    prefix = replace(prefix, residuals=residuals.to(model.device))
    found = interventions.sweep_prompt(
        model,
        prefix,
        option_ids,
        fitted,
        int(fitted["fold"][row]),
        alphas,
        modes,
        chunk,
    )
    if "written" in fitted:
        lowest = min(int(fitted["layers"][0]) + 1, model.n_layers)
        means = fitted["written"][lowest - 1 :]
        changed = blocks.without_parts(model, prefix, lowest, means)
        found["without"] = model.option_logits(changed, option_ids).cpu()
    return found
