"""A study's name and its own config: where results lie, and which run may change them.

What a study reads and computes lies under its name, and only its own settings change it: those of
its config files, edited as they may be. Other settings on the command line need another name.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import yaml
from snakemake.utils import update_config

from layercal import InputError
from layercal.config import Config
from layercal.files import write_atomically
from layercal.sources import registry

BASE = "config/config.yaml"
# a command line may choose from a study's models and question sets: no result depends on others
APART = ("study", "models", "questions")
EXAMPLE = "quick"


def with_defaults(config: Mapping) -> dict:
    """Return a config with the default of each key that it does not say."""
    filled = Config.model_construct().model_dump()
    update_config(filled, config)
    return filled


def own_config(files: Sequence[str | Path]) -> dict:
    """Return a study's config as its files alone give it, its name among it.

    Parameters
    ----------
    files : sequence of path
        Given on the command line, each over those before; all of them over ``config/config.yaml``.

    Returns
    -------
    dict
        ``study``, where no file says it, is the stem of the last file.
    """
    own, given = with_defaults(_read(BASE)), [_read(path) for path in files]
    for config in given:
        update_config(own, config)
    if given and not any("study" in config for config in given):
        own["study"] = Path(files[-1]).stem
    return own


def branches(config: Mapping, questions: Mapping) -> int:
    """Count a model, a question set and a mode of it each: over them a study splits its level.

    Parameters
    ----------
    config : mapping
    questions : mapping
        The registry; an entry may have modes of its own.
    """
    modes = config["steering"]["modes"]
    of_sets = (len(questions[name].get("modes", modes)) for name in config["questions"])
    return len(config["models"]) * sum(of_sets)


def differences(here: Mapping, there: Mapping, parents: str = "") -> dict[str, tuple]:
    """Compare two configs in all that results depend on: key -> (here, there)."""
    found: dict[str, tuple] = {}
    for key in [*here, *(key for key in there if key not in here)]:
        name, one, other = f"{parents}{key}", here.get(key), there.get(key)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found |= differences(one, other, f"{name}.")
        elif one != other and name not in APART:
            found[name] = (one, other)
    return found


def check(config: Mapping, files: Sequence[str | Path], given: Mapping) -> None:
    """Refuse a run whose settings would overwrite results made with others.

    Parameters
    ----------
    config : mapping
        The settings of the run, ``study`` among them.
    files : sequence of path
        As in :func:`own_config`.
    given : mapping
        Settings of the command line beside the files.

    Raises
    ------
    InputError
        If the command line changes a setting and not the study's name, or if the study's results
        were made by another config with other settings.
    """
    own, name = own_config(files), config["study"]
    changed = differences(config, own)
    if name == own["study"] and changed:
        raise InputError(_not_its_own(name, changed, files, given))
    holder = _holder(name)
    if holder is None or _by(name, files, given).items() <= holder.items():
        return
    changed = differences(config, holder["config"])
    if changed:
        raise InputError(_of_another(name, changed, _named(files, given), holder))


def _not_its_own(name: str, changed: dict, files: Sequence[str | Path], given: Mapping) -> str:
    settings = (
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in given.items()
        if key != "study"
    )
    return (
        f"these are not the settings of the study {name!r} ({_named(files)}):\n"
        f"{_listed(changed, '{0}, its own: {1}')}\n"
        "what was made with its own would be overwritten. Name a study for them:\n"
        f"  --config study={EXAMPLE} {shlex.join(settings)}\nor edit {_relative(files)[-1]}"
    )


def _of_another(name: str, changed: dict, this: str, holder: Mapping) -> str:
    return (
        f"the study {name!r} holds what {_named(holder['files'], holder['overrides'])} made with "
        f"other settings than {this}:\n{_listed(changed, '{0} here, {1} there')}\n"
        "what was made there would be overwritten. Give this one another name: study in its "
        f"config, or --config study={EXAMPLE}; or, if what is there may go, delete {_record(name)}"
    )


def record(config: Mapping, files: Sequence[str | Path], given: Mapping) -> None:
    """Write beside a study's results which config they are made by; see :func:`check`.

    Parameters
    ----------
    config : mapping
        All of the study, whatever models and question sets a run chooses from it.
    files : sequence of path
    given : mapping
    """
    held = _by(config["study"], files, given) | {"config": json.loads(json.dumps(config))}
    text = yaml.safe_dump(held, sort_keys=False)
    path = _record(config["study"])
    if not path.exists() or path.read_text() != text:
        write_atomically(path, text)


def _record(name: str) -> Path:
    return Path("results", name, "study.yaml")


def _holder(name: str) -> dict | None:
    """Which config a study's results are made by; one name is that of the project's own config."""
    base, path = own_config([]), _record(name)
    held = _read(path) if path.exists() else None
    if held:
        held["config"] = with_defaults(held["config"])
    if name == base["study"]:
        return {**_by(name, [], {}), "config": held["config"] if held else base}
    return held


def _by(name: str, files: Sequence[str | Path], given: Mapping) -> dict:
    """Whose a study is: that of its files, or of the command line's settings over them."""
    named_there = name != own_config(files)["study"]
    overrides = {key: value for key, value in given.items() if key not in APART and named_there}
    return {"files": _relative(files), "overrides": json.loads(json.dumps(overrides))}


def _relative(files: Sequence[str | Path]) -> list[str]:
    """Paths as seen from the project, so that a project may be moved."""
    return [os.path.relpath(path) for path in files] or [BASE]


def _named(files: Sequence[str | Path], given: Mapping | None = None) -> str:
    said = " ".join(f"{key}={value}" for key, value in (given or {}).items() if key not in APART)
    return ", ".join(_relative(files)) + (f" with {said}" if said else "")


def _listed(changed: dict[str, tuple], form: str) -> str:
    said = {key: form.format(*map(json.dumps, pair)) for key, pair in changed.items()}
    return "\n".join(f"  {key}: {text}" for key, text in said.items())


def _read(path: str | Path) -> dict:
    return registry.read_yaml(Path(path)) or {}
