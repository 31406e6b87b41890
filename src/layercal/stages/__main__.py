"""Run a stage from the command line, as the rules do: its options are those of its signature."""

from __future__ import annotations

import argparse
import ast
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from layercal import InputError, code, provenance, stages
from layercal.stages import log

# a list is written as its values, a dict as Python would write it
READ: dict[str, Callable[[str], object]] = {
    "str": str,
    "int": int,
    "float": float,
    "dict": ast.literal_eval,
}
READ |= {"Path": Path, "Output": Path}


def parser(name: str) -> argparse.ArgumentParser:
    """Command line of a stage."""
    options = argparse.ArgumentParser(
        prog=f"python -m layercal.stages {name}",
        description=stages.function(name).__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    options.add_argument("--log", type=Path, help="write messages to this file, not the screen")
    for parameter in code.parameters(name):
        options.add_argument(
            f"--{parameter.name.replace('_', '-')}",
            type=_or_none(READ[parameter.kind]) if parameter.optional else READ[parameter.kind],
            nargs="*" if parameter.several else None,
            required=parameter.required,
            metavar=parameter.kind,
        )
    return options


def _or_none(read: Callable[[str], object]) -> Callable[[str], object]:
    return lambda text: None if text == "None" else read(text)


def run(name: str, given: dict, target: Path | None = None) -> None:
    """Run a stage; bad input ends in one clear message.

    Messages go to ``target`` or the screen, progress bars to the screen if it is a terminal.
    """
    if target:
        target.parent.mkdir(parents=True, exist_ok=True)
    logging.basicConfig(
        filename=target, filemode="w", level=logging.WARNING, format="%(message)s", force=True
    )
    log.setLevel(logging.INFO)
    try:
        stage = stages.function(name)
        stage(**given)
        settings = inspect.signature(stage).bind(**given)
        settings.apply_defaults()
        main = next(each.name for each in code.parameters(name) if each.kind == "Output")
        provenance.record(settings.arguments.pop(main), settings.arguments)
    except InputError as error:
        log.error("error: %s", error)
        sys.exit(1)
    except KeyboardInterrupt:
        log.error("interrupted")
        raise
    except Exception:
        log.error("unexpected error:\n%s", traceback.format_exc())
        sys.exit(2)


def main(arguments: Sequence[str]) -> None:
    """Run the stage that the first word names with the options behind it."""
    names = code.stages()
    if not arguments or arguments[0] not in names:
        sys.exit(f"usage: python -m layercal.stages STAGE [--help]\nstages: {', '.join(names)}")
    name, *options = arguments
    given = vars(parser(name).parse_args(options))
    run(name, given, given.pop("log", None))


if __name__ == "__main__":
    main(sys.argv[1:])
