"""A study's config and the registries it names, checked before anything runs."""

from __future__ import annotations

import copy
import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce

import yaml
from pydantic import BaseModel, ValidationError

from layercal import InputError
from layercal.config import Config, Model, QuestionSet
from layercal.sources.registry import alternatives, expand_home

LONGEST_NAME = 100
# what stands beside folders of these names has one of them
SUFFIXES = (".html", ".ipynb", ".png", ".pdf", ".csv", ".json", ".parquet", ".yaml", ".log", ".tsv")
# pydantic's name of an error -> what was expected, or what is wrong with a value
TYPES = {
    "int_type": "integer",
    "float_type": "number",
    "bool_type": "boolean",
    "finite_number": "number",
    "string_type": "string",
    "list_type": "array",
    "dict_type": "object",
    "model_type": "object",
}
BOUNDS = {
    "greater_than_equal": "is less than the minimum of {ge:g}",
    "greater_than": "is less than or equal to the minimum of {gt:g}",
    "less_than_equal": "is greater than the maximum of {le:g}",
    "string_pattern_mismatch": "does not match {pattern!r}",
    "twice": "has non-unique elements",
}
# where text may spell what was expected
SPELT = ("int_type", "float_type", "bool_type")


def as_meant(config: dict) -> dict:
    """Return a config with numbers, booleans and null for text where no text is expected.

    Snakemake hands on what stands inside of ``--config 'phase={tolerance: 0.05}'`` as text. What
    cannot be read so stays, for :func:`check` to name. ``~`` in the path of a prompt is the home.
    """
    meant = copy.deepcopy(config)
    spelt = [error for error in _errors(meant, Config) if _may_spell(error)]
    for error in spelt:
        _put(meant, error["loc"], _parsed(error["input"]))
    still = {error["loc"] for error in _errors(meant, Config) if error["type"] in SPELT}
    for error in spelt:
        if error["loc"] in still:
            _put(meant, error["loc"], error["input"])
    return {**meant, "prompt": expand_home(meant["prompt"])} if "prompt" in meant else meant


def _may_spell(error: Mapping) -> bool:
    return error["type"] in SPELT and isinstance(error["input"], str)


def _put(config: dict, loc: tuple, value: object) -> None:
    *parents, key = loc
    reduce(lambda part, parent: part[parent], parents, config)[key] = value


def _parsed(text: str) -> object:
    """The number, boolean or null that a text spells, in any case; else the text."""
    try:
        return json.loads(text.lower())
    except ValueError:
        return text


def check(config: dict, models: dict, questions: dict) -> None:
    """Check a config against its model and the registries.

    Parameters
    ----------
    config : dict
        What it does not say has its default.
    models, questions : dict
        The registries ``config/models.yaml`` and ``config/questions.yaml``.

    Raises
    ------
    InputError
        Naming every key at fault, what was found and what is expected.
    """
    problems = _problems(config, Config) or _unfit(Config.model_validate(config), models, questions)
    if problems:
        raise InputError("the config cannot be used:\n  " + "\n  ".join(sorted(problems)))


def _unfit(config: Config, models: dict, questions: dict) -> list[str]:
    """What each key may hold but not beside the others and the registries."""
    return [
        *_unknown(config.models, models, "models", "model"),
        *_unknown(config.questions, questions, "questions", "question set"),
        *_unknown(config.directions.transfer.models, models, "models", "model"),
        *_unknown(config.directions.transfer.questions, questions, "questions", "question set"),
        *_too_few(config),
    ]


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


def _fault(name: object) -> str | None:
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


def _yaml_type(value: object) -> str:
    kind = type(value).__name__
    named = {"bool": "yes or no", "NoneType": "nothing", "date": "a date", "datetime": "a date"}
    return named.get(kind, "a number" if kind in ("int", "float", "str") else f"a {kind}")


def check_registry(path: str, entries: dict, kind: type[Model] | type[QuestionSet]) -> None:
    """Check every source of every entry of a registry.

    Parameters
    ----------
    path : str
        The registry, for the message.
    entries : dict
    kind : type
        Of an entry with one source.

    Raises
    ------
    InputError
        Naming every entry and key at fault, what was found and what is expected.
    """
    if not isinstance(entries, dict):
        raise InputError(
            f"{path} cannot be used:\n  found {entries!r:.80}; expected entries by name"
        )
    problems = [
        f"{name}: {problem}"
        for name, entry in entries.items()
        for problem in _problems_of_entry(entry, kind)
    ]
    if problems:
        raise InputError(f"{path} cannot be used:\n  " + "\n  ".join(problems))


def _problems_of_entry(entry: object, kind: type[Model] | type[QuestionSet]) -> list[str]:
    sources = entry.get("sources", [{}]) if isinstance(entry, dict) else None
    if (
        not isinstance(entry, dict)
        or not isinstance(sources, list)
        or not sources
        or not all(isinstance(s, dict) for s in sources)
    ):
        return ["expected the keys of one source, or a list of sources, each with its keys"]
    problems = [_problems_of_source(source, kind) for source in alternatives(entry)]
    # what every source shows lies in the keys that hold for all
    shared = [problem for problem in problems[0] if all(problem in each for each in problems)]
    return shared + [
        f"sources[{n}]: {problem}"
        for n, each in enumerate(problems)
        for problem in each
        if problem not in shared
    ]


def _problems_of_source(source: dict, kind: type[Model] | type[QuestionSet]) -> list[str]:
    problems = [*_problems(source, kind), *kind.faults(source)]
    named = [key for key in kind.SOURCES if key in source]
    if len(named) != 1:
        expected = ", ".join(kind.SOURCES)
        problems.append(f"found {' and '.join(named) or 'no source'}; expected one of {expected}")
    return sorted(problems)


def _problems(value: object, kind: type[BaseModel]) -> list[str]:
    errors = _errors(value, kind)
    schema = kind.model_json_schema() if errors else {}
    return [_explain(error, schema) for error in errors]


def _errors(value: object, kind: type[BaseModel]) -> Sequence[Mapping]:
    try:
        kind.model_validate(value)
    except ValidationError as error:
        return error.errors(include_url=False)
    return []


def _explain(error: Mapping, schema: dict) -> str:
    name, loc = error["type"], error["loc"]
    if name in ("extra_forbidden", "invalid_key"):
        known = sorted(_key(schema, loc[:-1])["properties"])
        where = f"{_where(loc[:-1])}.{loc[-1]}".lstrip(".")
        return f"unknown key {where!r}{_suggest(loc[-1], known)}"
    if name == "missing":
        return f"{_where(loc[:-1])}: {loc[-1]!r} is a required property".removeprefix(": ")
    return f"{_where(loc)}: {_fault_of_value(error, _key(schema, loc))}".removeprefix(": ")


def _fault_of_value(error: Mapping, key: dict) -> str:
    """Say what is wrong with a value: what was given, and what the schema of its key expects."""
    name, value = error["type"], error["input"]
    if name in TYPES:
        return f"found {value!r}; expected {TYPES[name]}{' or null' * ('anyOf' in key)}"
    if name == "literal_error":
        return f"{value!r} is not one of {key['enum']}"
    if name == "too_short":
        return f"{value!r} {'is too short' if value else 'should be non-empty'}"
    if name in BOUNDS:
        return f"{value!r} {BOUNDS[name].format(**error.get('ctx', {}))}"
    return f"found {value!r}; {error['msg']}"


def _where(loc: tuple) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc)
    return where.lstrip(".")


def _key(schema: dict, loc: tuple) -> dict:
    """What a JSON schema says of one key; nothing, where it names none such."""
    key = schema
    for part in loc:
        inner = key.get("properties", {}).get(part) or key.get("additionalProperties") or {}
        key = key.get("items", inner)
        key = schema["$defs"][key["$ref"].rpartition("/")[2]] if "$ref" in key else key
    return key


def _unknown(names: list[str], registry: dict, key: str, what: str) -> list[str]:
    return [
        f"{key}: unknown {what} {name!r}{_suggest(name, registry)}; add it to config/{key}.yaml"
        for name in names
        if name not in registry
    ]


def _too_few(config: Config) -> list[str]:
    """What fewer questions than ``limit`` leaves would make impossible."""
    needed = {
        "folds": config.folds,
        "calibration.min_group": config.calibration.min_group,
    }
    limit = config.limit
    return [
        f"limit: {limit} questions are too few for {key}: {least}; raise the one or lower the other"
        for key, least in needed.items()
        if limit is not None and limit < least
    ]


def _suggest(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(name), list(known), 1)
    return f" (did you mean {near[0]!r}?)" if near else f" (known: {', '.join(sorted(known))})"
