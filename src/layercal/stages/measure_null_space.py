"""How much of the stream lies in the unembedding's null space, over depth."""

from __future__ import annotations

from pathlib import Path

from layercal import results
from layercal.ablation import nullspace
from layercal.model.fetched import load_fetched
from layercal.stages import Output


def measure_null_space(
    *,
    manifest: Path,
    prompts: Path,
    residuals: list[Path],
    rules: list[str],
    dtype: str = "auto",
    device: str = "auto",
    quantize: str = "none",
    threads: int | None = None,
    table: Output,
) -> None:
    """Write shares of the stream and of block updates, by layer and size of the null space."""
    run = results.Run.load(prompts)
    stream = results.Residuals.load(residuals, run)
    unembedding = nullspace.effective_unembedding(
        load_fetched(manifest, dtype, device, quantize, threads)
    )
    run.write(table, nullspace.null_shares(stream, unembedding, rules))
