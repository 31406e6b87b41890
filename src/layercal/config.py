"""The study's config and the registries it names, checked before anything runs.

``python -m layercal.config > config/README.md`` writes the table of all keys.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import jsonschema
import yaml

from layercal import InputError
from layercal.sources.registry import alternatives, expand_home

LONGEST_NAME = 100
# what stands beside folders of these names has one of them
SUFFIXES = (".html", ".ipynb", ".png", ".pdf", ".csv", ".json", ".parquet", ".yaml", ".log", ".tsv")


def as_meant(config: dict, schema: dict) -> dict:
    """Return a config with numbers, booleans and null for text where the schema has no text.

    Snakemake hands on what stands inside of ``--config 'phase={tolerance: 0.05}'`` as text. What
    cannot be read so stays, for :func:`check` to name. ``~`` in the path of a prompt is the home.
    """
    found = _as_meant(config, schema)
    return {**found, "prompt": expand_home(found["prompt"])} if "prompt" in found else found


def _as_meant(value, schema: dict):
    if isinstance(value, dict):
        known = schema.get("properties", {})
        return {key: _as_meant(each, known.get(key, {})) for key, each in value.items()}
    if isinstance(value, list):
        return [_as_meant(each, schema.get("items", {})) for each in value]
    types = schema.get("type", "string")
    types = [types] if isinstance(types, str) else types
    if not isinstance(value, str) or "string" in types:
        return value
    read = _parsed(value)
    is_type = jsonschema.Draft202012Validator(schema).is_type
    return read if any(is_type(read, kind) for kind in types) else value


def _parsed(text: str):
    """The number, boolean or null that a text spells, in any case; else the text."""
    try:
        return json.loads(text.lower())
    except ValueError:
        return text


def check(config: dict, schema: dict, models: dict, questions: dict) -> None:
    """Check a config against its schema and the registries.

    Parameters
    ----------
    config : dict
    schema : dict
        ``workflow/schemas/config.schema.yaml``.
    models, questions : dict
        The registries ``config/models.yaml`` and ``config/questions.yaml``.

    Raises
    ------
    InputError
        Naming every key at fault, what was found and what is expected.
    """
    validator = jsonschema.Draft202012Validator(schema)
    problems = [_explain(error) for error in validator.iter_errors(config)]
    if not problems:
        problems += _unknown(config["models"], models, "models", "model")
        problems += _unknown(config["questions"], questions, "questions", "question set")
        transfer = config["directions"]["transfer"]
        problems += _unknown(transfer["models"], models, "models", "model")
        problems += _unknown(transfer["questions"], questions, "questions", "question set")
        problems += _too_few(config)
    if problems:
        raise InputError("the config cannot be used:\n  " + "\n  ".join(sorted(problems)))


def check_names(**names: Iterable) -> None:
    """Check that names can stand in paths, links and commands, each for one thing alone.

    Parameters
    ----------
    **names : iterable
        Kind -> names, ``models=["smollm2-135m"]``.

    Raises
    ------
    InputError
        Naming every one at fault, why, and the rule.
    """
    problems = [
        f"{kind}: {name!r} {fault}"
        for kind, some in names.items()
        for name in some
        if (fault := _fault(name))
    ]
    for kind, some in names.items():
        seen: dict[str, str] = {}
        for name in filter(lambda one: isinstance(one, str), some):
            twin = seen.setdefault(name.lower(), name)
            if twin != name:
                problems.append(f"{kind}: {twin!r} and {name!r} are one name to some disks")
    if problems:
        raise InputError(
            "these names cannot be used:\n  " + "\n  ".join(problems) + "\n"
            "a name is of letters a to z, digits, '.', '_' and '-', begins with a letter or digit, "
            f"has at most {LONGEST_NAME} characters, and is not what YAML reads as something else"
        )


def _fault(name) -> str | None:
    if not isinstance(name, str):
        return f"is no text but {_yaml_type(name)} to YAML"
    odd = "".join(dict.fromkeys(re.findall(r"[^A-Za-z0-9._-]", name)))
    if odd:
        return f"holds {odd!r}"
    if not re.match(r"[A-Za-z0-9]", name):
        return "does not begin with a letter or digit"
    if len(name) > LONGEST_NAME:
        return f"has {len(name)} characters"
    if name.endswith(SUFFIXES):
        return f"ends as a file does, in {name[name.rindex('.') :]}"
    if not isinstance(read := yaml.safe_load(name), str) or _is_number(name):
        return f"is {_yaml_type(read)} to YAML where it is not quoted"
    return None


def _is_number(name: str) -> bool:
    try:
        return float(name) is not None
    except ValueError:
        return False


def _yaml_type(value) -> str:
    kind = type(value).__name__
    named = {"bool": "yes or no", "NoneType": "nothing", "date": "a date", "datetime": "a date"}
    return named.get(kind, "a number" if kind in ("int", "float", "str") else f"a {kind}")


def check_registry(path: str, entries: dict, schema: dict) -> None:
    """Check every source of every entry of a registry.

    Parameters
    ----------
    path : str
        The registry, for the message.
    entries : dict
    schema : dict
        Of an entry with one source, such as ``workflow/schemas/models.schema.yaml``.

    Raises
    ------
    InputError
        Naming every entry and key at fault, what was found and what is expected.
    """
    if not isinstance(entries, dict):
        raise InputError(
            f"{path} cannot be used:\n  found {entries!r:.80}; expected entries by name"
        )
    validator = jsonschema.Draft202012Validator(schema)
    problems = [
        f"{name}: {problem}"
        for name, entry in entries.items()
        for problem in _problems_of_entry(entry, validator)
    ]
    if problems:
        raise InputError(f"{path} cannot be used:\n  " + "\n  ".join(problems))


def _problems_of_entry(entry, validator: jsonschema.Draft202012Validator) -> list[str]:
    sources = entry.get("sources", [{}]) if isinstance(entry, dict) else None
    if (
        not isinstance(sources, list)
        or not sources
        or not all(isinstance(s, dict) for s in sources)
    ):
        return ["expected the keys of one source, or a list of sources, each with its keys"]
    found = [[_explain(e) for e in validator.iter_errors(each)] for each in alternatives(entry)]
    # what every source shows lies in the keys that hold for all
    shared = [problem for problem in found[0] if all(problem in each for each in found)]
    return sorted(shared) + [
        f"sources[{n}]: {problem}"
        for n, each in enumerate(found)
        for problem in sorted(each)
        if problem not in shared
    ]


def _explain(error: jsonschema.ValidationError) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in error.path)
    where = where.lstrip(".")
    if error.validator == "additionalProperties":
        known = sorted(error.schema["properties"])
        unknown = sorted(set(error.instance) - set(known))
        return "; ".join(
            f"unknown key {f'{where}.{key}'.lstrip('.')!r}{_suggest(key, known)}" for key in unknown
        )
    if error.validator == "oneOf":
        kinds = [option["required"][0] for option in error.validator_value]
        found = [kind for kind in kinds if kind in error.instance]
        return f"found {' and '.join(found) or 'no source'}; expected one of {', '.join(kinds)}"
    if error.validator == "contains":
        return f"{where}: found {error.instance}; it must hold 0, the unsteered reading"
    if error.validator == "type":
        expected = error.validator_value
        expected = expected if isinstance(expected, str) else " or ".join(expected)
        return f"{where}: found {error.instance!r}; expected {expected}"
    return f"{where}: {error.message}" if where else error.message


def _unknown(names: list[str], registry: dict, key: str, what: str) -> list[str]:
    return [
        f"{key}: unknown {what} {name!r}{_suggest(name, registry)}; add it to config/{key}.yaml"
        for name in names
        if name not in registry
    ]


def _too_few(config: dict) -> list[str]:
    """What fewer questions than ``limit`` leaves would make impossible."""
    needed = {
        "folds": config["folds"],
        "extract.shards": config["extract"]["shards"],
        "calibration.min_group": config["calibration"]["min_group"],
    }
    limit = config["limit"]
    return [
        f"limit: {limit} questions are too few for {key}: {least}; raise the one or lower the other"
        for key, least in needed.items()
        if limit is not None and limit < least
    ]


def _suggest(name: str, known) -> str:
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(sorted(known))})"


def key_tables(folder: Path) -> str:
    """Write all keys of the config and the registries as tables in Markdown.

    Parameters
    ----------
    folder : path
        Of the project.
    """
    parts = ["# All keys\n\nMade from `workflow/schemas/` by `python -m layercal.config`.\n"]
    for name in ("config", "models", "questions"):
        schema = _read(folder / f"workflow/schemas/{name}.schema.yaml")
        defaults = _read(folder / "config/config.yaml") if name == "config" else None
        head = ["key", "type", *(["default"] if defaults else []), "meaning"]
        rows = [head, ["---"] * len(head), *_key_rows(schema, defaults)]
        lines = [f"| {' | '.join(row)} |" for row in rows]
        parts.append(f"## `{schema['title']}`\n\n{schema['description']}\n")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _key_rows(schema: dict, defaults: dict | None, parents: str = "") -> Iterator[list[str]]:
    for key, found in schema["properties"].items():
        required = key in schema.get("required", ()) and defaults is None
        meaning = found["description"] + " Required." * required
        row = [f"`{parents}{key}`", _type(found)]
        if "properties" in found:
            row += [""] if defaults else []
            yield [*row, meaning]
            inner = defaults[key] if defaults else None
            yield from _key_rows(found, inner, f"{parents}{key}.")
        else:
            row += [f"`{json.dumps(defaults[key])}`"] if defaults else []
            yield [*row, meaning]


def _type(found: dict) -> str:
    if "enum" in found:
        return ", ".join(f"`{value}`" for value in found["enum"])
    if found["type"] == "array":
        return f"list of {_type(found['items'])}"
    types = found["type"] if isinstance(found["type"], list) else [found["type"]]
    return " or ".join(types)


def _read(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


if __name__ == "__main__":
    print(key_tables(Path.cwd()), end="")
