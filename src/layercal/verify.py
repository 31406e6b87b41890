"""Compare results with the numbers that are committed: ``make verify``.

Of each study, model and question set of which Git holds numbers, the results must be there: the
committed file itself proves nothing, since a clone has it too.

The same machine and config give the same bytes. Another machine, dtype or version of a package
rounds otherwise, which can move a question across the edge of a bin or to another option; the
tolerances say how far that may move a number. They are those of a few hundred questions.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from layercal import InputError
from layercal.results import Results

TOLERANCES = {
    "n": 0,
    "accuracy_final": 0.02,
    "ece_final": 0.02,
    "ece_peak": 0.03,
    "correction": 0.04,
    "decision_layer": 1,
    "peak_layer": 1,
    "final_layer": 0,
}

AGAIN = "; run the study (make study), or pull its results (make hydrate)"


def compare(committed: dict, found: dict) -> list[str]:
    """List the numbers that lie further from the committed ones than their tolerances.

    Parameters
    ----------
    committed, found : dict of str to number
        As in ``metrics/{study}/{model}/{questions}.json``; of ``found`` other keys are not looked
        at. A decision layer is None where there is none.
    """
    lines = []
    for name, tolerance in TOLERANCES.items():
        old, new = committed[name], found[name]
        if old != new and (None in (old, new) or abs(new - old) > tolerance):
            lines.append(f"{name} is {new}, committed is {old} (tolerance {tolerance})")
    return lines


def main() -> None:
    """Print what differs; exit with 1 if anything does beyond its tolerance."""
    try:
        differences, same = _all_differences()
    except InputError as error:
        sys.exit(f"verify: {error}")
    for line in differences:
        print(f"verify: {line}")
    if differences:
        sys.exit(1)
    print(f"verify: all numbers agree with those committed; {same} file(s) byte for byte")


def _all_differences() -> tuple[list[str], int]:
    names = _git("ls-tree", "-r", "--name-only", "HEAD", "metrics").split()
    if not names:
        raise InputError("no numbers are committed under metrics/; run the study and commit them")
    differences, same = [], 0
    for name in names:
        committed, study, pair = _git("show", f"HEAD:{name}"), *_pair(name)
        model, questions = pair.parts
        phase = Results(study, model, questions).path("phase")
        missing = [str(path) for path in (phase, Path(name)) if not path.exists()]
        if missing:
            differences.append(f"{name} is committed, but {' and '.join(missing)} not there{AGAIN}")
            continue
        same += Path(name).read_text() == committed
        found = json.loads(phase.read_text())
        differences += [f"{name}: {line}" for line in compare(json.loads(committed), found)]
    return differences, same


def _pair(name: str) -> tuple[str, Path]:
    """Study, and model and questions, of a file of numbers."""
    _, study, *pair = Path(name).with_suffix("").parts
    return study, Path(*pair)


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"git {command[0]}: {done.stderr.strip()}; this needs a Git clone")
    return done.stdout


if __name__ == "__main__":
    main()
