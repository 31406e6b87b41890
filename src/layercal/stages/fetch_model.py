"""Fetch one model of the registry: download, check, convert, write its manifest last."""

from __future__ import annotations

from layercal.model import proof
from layercal.sources import weights
from layercal.stages import Output, log


def fetch_model(
    *,
    model: str,
    entry: dict,
    manifest: Output,
) -> None:
    """Fetch into the manifest's folder."""
    written = weights.fetch_model(model, entry, manifest.parent, proof.prove)
    log.info("%s: %d files", model, len(written["files"]))
