"""Time and peak memory of a call, on Linux."""

import ctypes
import re
import time
from pathlib import Path

STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measured(run, *arguments):
    """Result of a call, its seconds, and by how many MB memory peaked above what it was."""
    ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process still holds would hide growth
    RESET.write_text("5")
    before, start = resident("VmRSS"), time.perf_counter()
    result = run(*arguments)
    return result, time.perf_counter() - start, resident("VmHWM") - before


def resident(kind):
    """MB of memory that the process holds (VmRSS) or held at most (VmHWM)."""
    return int(re.search(rf"{kind}:\s+(\d+)", STATUS.read_text())[1]) / 1024
