"""One typed function a rule, of the rule's name: read files, call the library, write files.

``python -m layercal.stages RULE --help`` shows what it asks for. Here is only what they share; no
result depends on it.
"""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

if not sys.stderr.isatty():  # progress bars, those of libraries too, are for terminals
    os.environ.setdefault("TQDM_DISABLE", "1")

log = logging.getLogger("layercal")
# a file that a stage writes; the first of a signature is its main one
Output = Path


def _but_for_interrupts(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Ctrl-C, while a stage is imported or runs, needs no traceback."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _but_for_interrupts


def function(name: str) -> Callable[..., None]:
    """Return the function of a rule."""
    return getattr(importlib.import_module(f"layercal.stages.{name}"), name)
