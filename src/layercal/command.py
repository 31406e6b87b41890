"""What is typed around a run: slips in Snakemake's command line, and Ctrl-C, in one line each."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from layercal import InputError
from layercal.sources.registry import read_yaml

DEFAULTS = Path("config/config.yaml")
OPTIONS = ("--configfile", "--configfiles")
INTERRUPTED = "interrupted: what is finished is kept; the same command goes on from there"


def check(arguments: Sequence[str]) -> None:
    """See that what Snakemake would read as config files are some, and are sound YAML.

    ``--configfile`` takes every word up to the next option, targets too.

    Parameters
    ----------
    arguments : sequence of str
        Of Snakemake.

    Raises
    ------
    InputError
        With the order that works, or why a file cannot be read.
    """
    taken = _config_files(arguments)
    targets = [name for name in taken if not name.endswith((".yaml", ".yml", ".json"))]
    targets += [name for name in taken[1:] if name.endswith(".json")]  # results are, too
    if targets and len(targets) < len(taken):
        files = " ".join(name for name in taken if name not in targets)
        raise InputError(
            f"--configfile takes every word behind it, {', '.join(targets)} too; targets go before "
            f"it: snakemake {' '.join(targets)} --configfile {files}"
        )
    own = [DEFAULTS] if DEFAULTS.exists() else []
    for path in [*own, *map(Path, taken)]:
        read_yaml(path)


def _config_files(arguments: Sequence[str]) -> list[str]:
    taken, inside = [], False
    for word in arguments:
        option, _, value = word.partition("=")
        if word.startswith("-"):
            inside = option in OPTIONS
            taken += [value] if inside and value else []
            inside = inside and not value
        elif inside:
            taken.append(word)
    return taken


def check_or_exit() -> None:
    """Check the command line of this process: profiles/default calls it before all else."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in the background
        signal.signal(signal.SIGINT, _end_at_once)
    try:
        check(sys.argv[1:])
    except InputError as error:
        sys.exit(f"error: {error}")


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """While a plan is made nothing is lost; an exception might be, in what Snakemake awaits."""
    print(INTERRUPTED, file=sys.stderr, flush=True)
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


def leave_interrupts_to_snakemake() -> None:
    """Let Ctrl-C end the jobs of a run that starts, in the way of Snakemake."""
    if signal.getsignal(signal.SIGINT) is _end_at_once:
        signal.signal(signal.SIGINT, _interrupt)


def _interrupt(number: int, frame: object) -> None:
    """As Python's own handler, in whose place asyncio puts one that an awaited task may lose."""
    raise KeyboardInterrupt


class UntilInterrupted(logging.Filter):
    """Lets messages through until Ctrl-C ends a run: then one line, and no more.

    What the jobs that it stopped would have said are errors that are none.
    """

    over = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to show a message."""
        if not self.over and "on user request" in record.getMessage():
            self.over, record.msg, record.args = True, INTERRUPTED, ()
            return True
        return not self.over
