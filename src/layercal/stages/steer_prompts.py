"""Steer the prompts of one shard over all directions, layers, scales and modes."""

from __future__ import annotations

from pathlib import Path

import torch
from tqdm import tqdm

from layercal import results
from layercal.model import Prefix
from layercal.model.fetched import load_fetched
from layercal.model.unembedding import reads_in_closed_form
from layercal.stages import Output
from layercal.steering import interventions, steered, tally
from layercal.steering.closed_form import ClosedForm
from layercal.steering.fitted import Fitted


def steer_prompts(
    *,
    manifest: Path,
    prompts: Path,
    residuals: Path,
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
    first. ``rows`` (n) are the places of the questions among all prompts.
    """
    run = results.Run.load(prompts)
    fitted = Fitted.load(run, directions)
    read = run.read(residuals)
    if not len(read["rows"]):
        run.write(logits, {"rows": read["rows"]})
        return
    model = load_fetched(manifest, dtype, device, quantize, threads)
    n_options = run.n_options.max()
    closed = "lens" in modes and reads_in_closed_form(model)
    at_layer = ClosedForm(model, fitted, alphas) if closed else None
    others = [mode for mode in modes if mode != "lens" or not closed]
    recorder = steered.Recorder(tally.cells(run.prompts, fitted.fold.numpy()), n_options, n_bins)
    label = f"{manifest.parent.name}: steering, shard {shard}"
    bar = tqdm(read["rows"].tolist(), desc=label, unit="prompt", disable=None)
    for row, held in zip(bar, read["residuals"], strict=True):
        prompt, own = run.prompts.iloc[row], int(fitted.fold[row])
        option_ids, swept = torch.tensor(prompt["option_ids"]), {}
        if at_layer:
            swept["lens"] = at_layer.sweep(held, option_ids, own)
        if others:
            # from the residuals that the lens reads
            prefix = Prefix(torch.tensor(prompt["input_ids"])[None], held.to(model.device))
            swept |= interventions.sweep_prompt(
                model, prefix, option_ids, fitted, own, alphas, others, chunk
            )
        recorder.add(row, prompt["answer"], swept)
    run.write(logits, {"rows": read["rows"], **recorder.tensors()})
