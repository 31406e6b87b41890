"""What a study reads from this disk: its own models, questions and prompt templates.

Checked before a plan is made, inputs of the rules that read them, dependencies of DVC's stages.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from itertools import chain
from pathlib import Path

import yaml

from layercal import InputError
from layercal.files import TOKENIZER_FILES
from layercal.sources.registry import alternatives

KINDS = ("folder", "gguf", "csv_folder", "file")
MODELS = Path("resources/models")


def named(config: dict) -> tuple[list[str], list[str]]:
    """Return the models and the question sets that a config names, for transfer too."""
    transfer = config["directions"]["transfer"]
    found = [[*config[key], *transfer[key]] for key in ("models", "questions")]
    models, questions = (list(dict.fromkeys(names)) for names in found)
    return models, questions


def check(config: dict, models: dict, questions: dict) -> None:
    """See that the files that a config names are there.

    Of several sources one must be usable. A model's source may be gone once its manifest stands:
    weights are large, and results do not need them. Questions and templates are the study's own.

    Parameters
    ----------
    config : dict
    models, questions : dict
        The registries, with all that the config names.

    Raises
    ------
    InputError
        Naming all that is missing.
    """
    of_models, of_sets = named(config)
    problems = [
        f"models: {name}: {problem}"
        for name in of_models
        if not _kept(name, models[name])
        for problem in _problems(models[name])
    ]
    problems += [
        f"questions: {name}: {problem}"
        for name in of_sets
        for problem in _problems(questions[name])
    ]
    problems += [
        f"prompt: {path}: there is no such file"
        for path in _templates(config, questions)
        if not Path(path).is_file()
    ]
    if problems:
        raise InputError("what the config names cannot be read:\n  " + "\n  ".join(problems))


def question_inputs(entry: dict) -> list[str]:
    """Files that the local sources of a question set consist of.

    Where none is there, their paths: Snakemake then neither makes the table nor plans it anew.
    """
    return _files(entry)


def model_inputs(name: str, entry: dict) -> list[str]:
    """Files that the local sources of a model consist of; as in :func:`question_inputs`."""
    kept = _kept(name, entry)
    return [str(kept)] if kept else _files(entry)


def _files(entry: dict) -> list[str]:
    sources = alternatives(entry)
    usable = [source for source in sources if not _problem(source)]
    if usable:
        return [str(path) for source in usable for path in _parts(source)]
    return [str(path) for _, path in filter(None, map(_local, sources))]


def _local(source: dict) -> tuple[str, Path] | None:
    """Kind and path of a source on this disk."""
    if "wheels" in source:  # their file is a name in them
        return None
    return next(((kind, Path(source[kind])) for kind in KINDS if kind in source), None)


def _parts(source: dict) -> list[Path]:
    """Files that a source on this disk consists of; its path if it is gone."""
    found = _local(source)
    if not found:
        return []
    kind, path = found
    if kind == "csv_folder" and path.is_dir():
        from layercal.sources.question_files import mmlu_files

        return [*chain.from_iterable(mmlu_files(source).values()), *_flags(source)]
    if kind == "folder" and path.is_dir():
        return [path / name for name in _model_files(path, source)]
    return [path]


def _flags(source: dict) -> list[Path]:
    """The list of faulty questions, where a source has one."""
    path = source.get("flags")
    if path and not Path(path).is_file():
        raise InputError(f"{path}: there is no such file")
    return [Path(path)] if path else []


def _model_files(path: Path, source: dict) -> list[str]:
    from layercal.sources.weights import model_files

    names = [each.name for each in path.iterdir() if each.is_file()]
    trusted = source.get("trust_remote_code", False)
    files = model_files(names, str(path), trusted)
    if not trusted and not any(fnmatch(name, each) for name in names for each in TOKENIZER_FILES):
        raise InputError(f"{path}: expected a tokenizer, one of {', '.join(TOKENIZER_FILES)}")
    return files


def _problems(entry: dict) -> list[str]:
    """Say why no source of an entry can be read; those elsewhere are not looked at."""
    found = [_problem(source) for source in alternatives(entry)]
    return list(filter(None, found)) if all(found) else []


def _problem(source: dict) -> str | None:
    found = _local(source)
    if not found:
        return None
    kind, path = found
    folder = kind.endswith("folder")
    if not (path.is_dir() if folder else path.is_file()):
        return f"{path}: there is no such {'folder' if folder else 'file'}"
    try:
        _parts(source)
    except InputError as error:
        return str(error)
    return None


def _kept(name: str, entry: dict) -> Path | None:
    """Where a model came from, if that is gone from this disk and its manifest stands."""
    manifest = MODELS / name / "manifest.json"
    if not any(map(_problem, alternatives(entry))) or not manifest.is_file():
        return None
    try:
        source = json.loads(manifest.read_text())["source"]
    except (ValueError, KeyError, TypeError):
        return None  # damaged: fetching says so
    found = _local(source) if source in alternatives(entry) else None
    return found[1] if found and not found[1].exists() else None


def _templates(config: dict, questions: dict) -> Iterator[str]:
    """Jinja files that the config and its question sets name."""
    _, sets = named(config)
    chosen = dict.fromkeys(questions[name].get("prompt", config["prompt"]) for name in sets)
    return (prompt for prompt in chosen if prompt.endswith(".j2"))


def dependencies(config: dict, models: dict, questions: dict) -> dict[str, list[str]]:
    """What DVC's stages depend on beside the project's own files.

    Returns
    -------
    dict
        Stage -> files and folders on this disk.
    """
    of_models, of_sets = named(config)
    entries = [models[name] for name in of_models] + [questions[name] for name in of_sets]
    there = {
        str(path)
        for entry in entries
        for source in alternatives(entry)
        if (local := _local(source)) and not _problem(source)
        for path in (local[1], *_flags(source))
    }
    return {"fetch": sorted(there), "extract": sorted(_templates(config, questions))}


def check_dependencies(stages: dict[str, Iterable[str]], dvc: Path = Path("dvc.yaml")) -> None:
    """See that dvc.yaml lists what the config names, so that DVC sees it change.

    Raises
    ------
    InputError
        Naming what it lacks, and how it comes there.
    """
    listed = yaml.safe_load(dvc.read_text())["stages"]
    lacking = [
        path
        for stage, paths in stages.items()
        for path in paths
        if path not in listed[stage]["deps"]
    ]
    if lacking:
        raise InputError(
            f"{dvc} does not list {', '.join(lacking)}, which the config names, so DVC would not "
            "see it change; write it there and run again: python -m layercal.dvc && dvc repro"
        )
