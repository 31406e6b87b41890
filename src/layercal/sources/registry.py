"""The registries of models and questions, and the YAML files of a study."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import yaml

from layercal import InputError

log = logging.getLogger("layercal")
Found = TypeVar("Found")
REGISTRIES = (Path("config/models.yaml"), Path("config/questions.yaml"))
# keys that hold a path on this disk
PATHS = ("folder", "gguf", "csv_folder", "file", "prompt")


class _Strict(yaml.SafeLoader):
    """Safe YAML in which no key of a mapping stands twice: YAML would silently take the last."""

    def compose_mapping_node(self, anchor: dict[str, yaml.Node]) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: dict[tuple, yaml.Node] = {}
        for key, _ in node.value:
            first = seen.setdefault((key.tag, str(key.value)), key)
            if first is not key:
                line = first.start_mark.line + 1
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} stands twice, first in line {line}",
                    problem_mark=key.start_mark,
                )
        return node


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises
    ------
    InputError
        If it cannot be read, is no YAML, or names a key twice; with the line.
    """
    try:
        return _Strict(path.read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: {getattr(error, 'problem', None) or error}") from error


def read(path: Path) -> dict:
    """Read ``config/models.yaml`` or ``config/questions.yaml``; ``~`` in its paths is the home.

    Raises
    ------
    InputError
        As :func:`read_yaml`.
    """
    entries = read_yaml(path)
    if not isinstance(entries, dict):
        return entries  # the check of its form says what is wrong
    return {name: _at_home(entry) for name, entry in entries.items()}


def _at_home(entry: object) -> object:
    if not isinstance(entry, dict):
        return entry
    found = {key: expand_home(value) if key in PATHS else value for key, value in entry.items()}
    if isinstance(entry.get("sources"), list):
        found["sources"] = [_at_home(source) for source in entry["sources"]]
    return found


def expand_home(path: object) -> object:
    """Put the user's home for a leading ``~``; what is no text stays as it is."""
    return os.path.expanduser(path) if isinstance(path, str) else path


def alternatives(entry: dict) -> list[dict]:
    """Return an entry's sources, each as an entry of that source alone.

    Parameters
    ----------
    entry : dict
        Of a registry: one source, or a list ``sources`` beside the keys that hold for all.
    """
    common = {key: value for key, value in entry.items() if key != "sources"}
    return [{**common, **source} for source in entry.get("sources", [{}])]


def first_usable(
    name: str, entry: dict, kinds: Iterable[str], use: Callable[[str, dict], Found]
) -> Found:
    """Try an entry's sources in order and return what the first usable one gives.

    Parameters
    ----------
    name : str
    entry : dict
        Of a registry.
    kinds : iterable of str
        Keys of which each source has one.
    use : function (kind, source) -> found
        Raises :class:`InputError` if the source cannot be used.

    Raises
    ------
    InputError
        If none can; each with its reason.
    """
    choices, refusals = alternatives(entry), []
    for source in choices:
        kind = next(kind for kind in kinds if kind in source)
        try:
            return use(kind, source)
        except InputError as error:
            refusals.append(f"{kind}: {error}")
            if len(choices) == 1:
                raise
            if source is not choices[-1]:
                log.warning("%s: on to its next source, since %s", name, error)
    raise InputError(
        f"{name}: none of its {len(choices)} sources can be used:\n  " + "\n  ".join(refusals)
    )
