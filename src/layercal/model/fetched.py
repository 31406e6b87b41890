"""A fetched model, loaded for a stage."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from layercal import provenance
from layercal.model.lens_model import LensModel, load
from layercal.sources import manifests

log = logging.getLogger("layercal")


def load_fetched(
    manifest: Path,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str = "none",
    threads: int | None = None,
) -> LensModel:
    """Load the model of a manifest, its files fetched again where they are not those it lists.

    Parameters
    ----------
    manifest : Path
    dtype, device, quantize : str
        As :func:`layercal.model.load`; what the model's entry says of ``quantize`` wins.
    threads : int, optional
        Of the CPU; all if left out.
    """
    if threads:
        torch.set_num_threads(threads)
    manifests.restore(manifest)
    quantize = manifests.quantization(manifest) or quantize
    model = load(manifest.parent, dtype, device, quantize, manifests.trusted(manifest))
    name = manifest.parent.name
    log.info("%s: %d layers, %s on %s", name, model.n_layers, model.dtype, model.device)
    provenance.note(dtype=str(model.dtype), device=str(model.device), quantize=quantize)
    return model
