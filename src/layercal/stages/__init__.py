"""One thin module per rule: read files, call the library, write files.

Here is only what every stage's command line shares; no result depends on it.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import logging
import os
import platform
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from layercal import InputError

if not sys.stderr.isatty():  # progress bars, those of libraries too, are for terminals
    os.environ.setdefault("TQDM_DISABLE", "1")

log = logging.getLogger("layercal")


def _but_for_interrupts(kind, error, trace) -> None:
    """Ctrl-C, while a stage is imported or runs, needs no traceback."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _but_for_interrupts
# packages on which numbers depend
PACKAGES = ("layercal", "numpy", "pandas", "scipy", "tokenizers", "torch", "transformers")


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """Command line of a stage, with the options that all stages have."""
    made = argparse.ArgumentParser(
        prog=f"python -m layercal.stages.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    made.add_argument("--log", type=Path, help="write messages to this file instead of the screen")
    return made


def add_model_options(made: argparse.ArgumentParser) -> None:
    """Add the options of the stages that load a model."""
    made.add_argument("--manifest", type=Path, required=True, help="manifest.json of the model")
    made.add_argument("--dtype", choices=["auto", "float32", "bfloat16"], default="auto")
    made.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    made.add_argument(
        "--quantize", choices=["none", "8bit", "4bit"], default="none", help="weights of the blocks"
    )
    made.add_argument("--threads", type=int, default=None, help="CPU threads; all if left out")


def load_model(args: argparse.Namespace):
    """Load the model that the options of :func:`add_model_options` name."""
    from layercal.model.fetched import load_fetched

    loaded = load_fetched(args.manifest, args.dtype, args.device, args.quantize, args.threads)
    args.loaded = {"dtype": str(loaded.dtype), "device": str(loaded.device)}
    return loaded


def run(stage: Callable[[argparse.Namespace], None], made: argparse.ArgumentParser) -> None:
    """Parse the command line and run a stage; bad input ends in one clear message.

    Messages go to ``--log`` or the screen, progress bars to the screen if it is a terminal.
    """
    args = made.parse_args()
    if args.log:
        args.log.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=args.log, filemode="w", level=logging.WARNING, format="%(message)s", force=True
    )
    log.setLevel(logging.INFO)
    try:
        stage(args)
        if "out" in args:
            record(args)
    except InputError as error:
        log.error("error: %s", error)
        sys.exit(1)
    except KeyboardInterrupt:
        log.error("interrupted")
        raise
    except Exception:
        log.error("unexpected error:\n%s", traceback.format_exc())
        sys.exit(2)


def record(args: argparse.Namespace) -> None:
    """Write how a stage's output was made beside it, as ``{stem}.provenance.json``.

    Not into the tables, so that an unchanged result is an unchanged file. Settings, seeds among
    them, are the stage's own options, which the rules fill from the config.
    """
    from layercal import files

    made_from = {k: v for k, v in vars(args).items() if k not in ("log", "out", "loaded")}
    found = {
        "settings": made_from,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        **hardware(),
        **getattr(args, "loaded", {}),
    }
    target = args.out.with_name(f"{args.out.stem}.provenance.json")
    files.write_atomically(target, json.dumps(found, indent=2, default=str) + "\n")


def commit() -> str | None:
    """Return the Git commit of the code, marked if files differ from it; None outside of Git."""
    try:
        described = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        done = subprocess.run(described, capture_output=True, text=True, check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware() -> dict[str, str | int]:
    """Name the processor and, where a model ran on one, the GPU."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(": ", 1)[1] for line in lines if line.startswith("model name")]
    found = {"platform": platform.platform(), "cpus": os.cpu_count()}
    found["processor"] = names[0] if names else platform.processor() or platform.machine()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found
