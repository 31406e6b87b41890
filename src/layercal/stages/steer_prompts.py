"""Steer the prompts of one shard over all directions, layers, scales and modes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm

from layercal import results
from layercal.ablation import blocks
from layercal.model import LensModel
from layercal.model.fetched import load_fetched
from layercal.stages import Output
from layercal.steering import interventions, steered, tally
from layercal.steering.fitted import Fitted


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
    """Write, per mode, the readings of :class:`layercal.steering.steered.Steered`.

    ``{mode}/sums`` (cells, layers, R, alphas, sums) is all that is kept of the controls but the
    first. ``without`` (n, blocks, 2, options) is read with attention or MLP of one of the blocks
    above the first layer at its mean. ``rows`` (n) are the places of the questions among all
    prompts.
    """
    run = results.Run.load(prompts)
    fitted = Fitted.load(run, directions)
    inside = (run.prompts["shard"] == shard).to_numpy()
    stream = results.Residuals.load(residuals, run)
    model = load_fetched(manifest, dtype, device, quantize, threads)
    n_options = run.prompts["option_ids"].map(len).max()
    recorder = steered.Recorder(tally.cells(run.prompts, fitted.fold.numpy()), n_options, n_bins)
    label = f"{manifest.parent.name}: steering, shard {shard}"
    for row in tqdm(inside.nonzero()[0].tolist(), desc=label, unit="prompt", disable=None):
        prompt, held = run.prompts.iloc[row], stream.of_question(row)
        read, without = _one(
            model, fitted, prompt, held, row, alphas=alphas, modes=modes, chunk=chunk
        )
        recorder.add(row, prompt["answer"], read)
        if without is not None:
            recorder.keep("without", without)
    run.write(logits, {"rows": torch.tensor(inside.nonzero()[0]), **recorder.tensors()})


def _one(
    model: LensModel,
    fitted: Fitted,
    prompt: pd.Series,
    residuals: torch.Tensor,
    row: int,
    *,
    alphas: list[float],
    modes: list[str],
    chunk: int,
) -> tuple[dict[str, steered.Steered[torch.Tensor]], torch.Tensor | None]:
    """Steered readings of one prompt, from the residuals that the lens reads, and without parts."""
    option_ids = torch.tensor(prompt["option_ids"])
    prefix = model.prefix(torch.tensor(prompt["input_ids"]))
    prefix = replace(prefix, residuals=residuals.to(model.device))
    read = interventions.sweep_prompt(
        model,
        prefix,
        option_ids,
        fitted,
        int(fitted.fold[row]),
        alphas,
        modes,
        chunk,
    )
    if fitted.written is None:
        return read, None
    lowest = min(fitted.layers[0] + 1, model.n_layers)
    changed = blocks.without_parts(model, prefix, lowest, fitted.written[lowest - 1 :])
    return read, model.option_logits(changed, option_ids).cpu()
