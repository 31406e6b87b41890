"""What is made of the keys of the config and the registries: their table, and config.yaml.

``python -m layercal.keys`` writes config/README.md anew and, every value as it stands, the comments
of config/config.yaml, in which a new key gets its default.
"""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from layercal import InputError, checks, study
from layercal.config import Config, Model, QuestionSet
from layercal.files import write_atomically
from layercal.sources import registry

WIDTH = 100
HEAD = """\
# The embedded study: runs on a laptop from the Python package index alone.
#
# A file of your own says only what differs from this one: snakemake --configfile mine.yaml is the
# study "mine". So does the command line, for a study of another name: snakemake --config
# study=quick limit=40. README.md here says all of each key. DVC's stages point at keys of this
# file, so it says them all: python -m layercal.keys adds what it lacks and writes these comments.

"""


def tables() -> str:
    """Write all keys of the config and the registries as tables in Markdown."""
    parts = ["# All keys\n\nMade from `src/layercal/config.py` by `python -m layercal.keys`.\n"]
    for kind, name in ((Config, "config"), (Model, "models"), (QuestionSet, "questions")):
        head = ["key", "type", *(["default"] if kind is Config else []), "meaning"]
        rows = [head, ["---"] * len(head), *_rows(kind)]
        if kind is not Config:
            rows = [row[:2] + row[-1:] for row in rows]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        parts.append(f"## `{name}.yaml`\n\n{_meaning(kind)}\n")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _rows(kind: type[BaseModel], parents: str = "") -> Iterator[list[str]]:
    """Key, type, default and meaning of each key."""
    schema = kind.model_json_schema()["properties"]
    for name, field in kind.model_fields.items():
        key, required = f"`{parents}{name}`", " Required." * field.is_required()
        if inner := _inner(field):
            yield [key, "object", "", _meaning(inner) + required]
            yield from _rows(inner, f"{parents}{name}.")
        else:
            default = "" if required else f"`{json.dumps(field.default)}`"
            yield [key, _type(schema[name]), default, f"{field.description}{required}"]


def _inner(field: FieldInfo) -> type[BaseModel] | None:
    """The model of a key that holds keys."""
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _meaning(kind: type[BaseModel]) -> str:
    return " ".join((kind.__doc__ or "").split())


def _type(schema: dict) -> str:
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "anyOf" in schema:
        return " or ".join(map(_type, schema["anyOf"]))
    if schema["type"] == "array":
        return f"list of {_type(schema['items'])}"
    return schema["type"]


def config_yaml(config: dict) -> str:
    """Write a config as config/config.yaml, each key with what it means.

    Parameters
    ----------
    config : dict
        All keys.
    """
    return HEAD + "\n".join(_lines(Config, config)) + "\n"


def _lines(kind: type[BaseModel], values: dict, margin: str = "") -> Iterator[str]:
    schema = kind.model_json_schema()["properties"]
    for name, field in kind.model_fields.items():
        if inner := _inner(field):
            yield from [] if margin else [""]
            yield f"{margin}{name}: # {_meaning(inner).rstrip('.')}"
            yield from _lines(inner, values[name], f"{margin}  ")
        else:
            line = f"{margin}{name}: {_flow(values[name])}"
            yield from _commented(
                line, field.description or "", schema[name].get("enum", ()), margin
            )


def _commented(line: str, meaning: str, choices: Sequence[str], margin: str) -> list[str]:
    """A line with the first sentence of what it means, or its first part if that alone fits."""
    sentence = meaning.split(". ")[0].rstrip(".")
    end = f" ({', '.join(choices)})" if choices else ""
    for comment in (sentence, sentence.partition(";")[0]):
        if len(beside := f"{line} # {comment}{end}") <= WIDTH:
            return [beside]
    start = f"{margin}# "
    above = textwrap.wrap(sentence + end, WIDTH, initial_indent=start, subsequent_indent=start)
    return [*above, line]


def _flow(value: object) -> str:
    """A value as YAML writes it in one line."""
    return yaml.safe_dump([value], default_flow_style=True, width=float("inf")).strip()[1:-1]


def main() -> None:
    """Write both files."""
    config = study.own_config([])
    checks.check(config, *map(registry.read, registry.REGISTRIES))
    write_atomically(Path("config/README.md"), tables())
    write_atomically(Path(study.BASE), config_yaml(config))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
