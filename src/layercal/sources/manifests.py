"""The manifest of a fetched model: its files are there, and what may be done with them.

A file that is not what the manifest says is fetched again by its hash, so no result depends on how.
"""

from __future__ import annotations

import json
from pathlib import Path


def restore(manifest: Path) -> None:
    """See that a model's files are those of its manifest, fetching again what is not."""
    from layercal.sources import weights  # what only reads a manifest need not load it

    weights.restore(manifest.parent)


def quantization(manifest: Path) -> str | None:
    """How a model's entry asks for its blocks to be quantized; None if it leaves that open."""
    return json.loads(manifest.read_text()).get("source", {}).get("quantize")


def trusted(manifest: Path) -> bool:
    """Whether Python code that comes with a model may run."""
    return json.loads(manifest.read_text()).get("trust_remote_code", False)
