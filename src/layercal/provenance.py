"""How a result was made: written beside it, read by nothing that results depend on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from layercal import files

# packages on which numbers depend
PACKAGES = ("layercal", "numpy", "pandas", "scipy", "tokenizers", "torch", "transformers")
_noted: dict[str, str] = {}


def note(**facts: str) -> None:
    """Note of this process what its settings do not say, such as the device it chose."""
    _noted.update(facts)


def record(output: Path, settings: Mapping) -> None:
    """Write how a stage's output was made beside it, as ``{stem}.provenance.json``.

    Not into the tables, so that an unchanged result is an unchanged file.

    Parameters
    ----------
    output : Path
    settings : mapping
        What the stage was given, seeds among them, which the rules fill from the config.
    """
    known = {
        "settings": dict(settings),
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        **hardware(),
        **_noted,
    }
    target = output.with_name(f"{output.stem}.provenance.json")
    files.write_atomically(target, json.dumps(known, indent=2, default=str) + "\n")


def commit() -> str | None:
    """Return the Git commit of the code, marked if files differ from it; None outside of Git."""
    try:
        described = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        done = subprocess.run(described, capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware() -> dict[str, str | int | None]:
    """Name the processor and, where a model ran on one, the GPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    machine = {"platform": platform.platform(), "cpus": os.cpu_count()}
    machine["processor"] = names[0] if names else platform.processor() or platform.machine()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        machine["gpu"] = torch.cuda.get_device_name()
    return machine
