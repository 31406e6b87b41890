"""Read each layer with the final norm's scale of the layers above it."""

from __future__ import annotations

from pathlib import Path

import torch

from layercal import results
from layercal.ablation import norm
from layercal.metrics.scoring import Scoring
from layercal.model.fetched import load_fetched
from layercal.stages import Output


def measure_norm(
    *,
    manifest: Path,
    prompts: Path,
    residuals: list[Path],
    n_bins: int = 10,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str = "none",
    threads: int | None = None,
    table: Output,
) -> None:
    """Write NLL and ECE by layer, and by the layer whose scale is taken."""
    run = results.Run.load(prompts)
    stream = results.Residuals.load(residuals, run)
    model = load_fetched(manifest, dtype, device, quantize, threads)
    options = torch.tensor(run.option_ids), torch.tensor(run.n_options)
    scoring = Scoring.of_prompts(run.prompts, n_bins=n_bins)
    run.write(table, norm.table(scoring, norm.patched(model, stream, *options)))
