"""Where questions come from: wheels, the Hub, and users' files.

A reader is a function ``(name, entry) -> (where, row), ...`` of an entry of
``config/questions.yaml``, found in ``READERS`` by the key that names the entry's source. A form is
a function from a dataset's own row to the fields of ours, found by name in ``FORMS``.
"""

from __future__ import annotations

import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import datasets
import yaml
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from layercal import InputError
from layercal.sources import hub
from layercal.sources.question_files import Rows, read_csv_folder, read_file
from layercal.sources.questions import (
    LETTERS,
    answer_index,
    category_of,
    hash_order,
    named,
    row_problems,
    text,
)
from layercal.sources.registry import first_usable
from layercal.sources.wheels import fetch_wheels, wheel_members

FOUR = LETTERS[:4]


def read(name: str, entry: dict) -> tuple[list[dict], list[dict]]:
    """Read a question set of the registry.

    Parameters
    ----------
    name : str
    entry : dict
        Its entry in ``config/questions.yaml``; its sources are tried in order.

    Returns
    -------
    rows : list of dict
        Of the question table.
    rejected : list of dict
        ``where``, ``reason`` and ``question`` of what is left out: what is not plainly a question
        with its options and answer is never guessed.

    Raises
    ------
    InputError
        If the source cannot be had or read, or a row of a user's own file is no question; every
        bad row is named with its reason.
    """
    return first_usable(name, entry, READERS, partial(_read_source, name))


def _read_source(name: str, kind: str, source: dict) -> tuple[list[dict], list[dict]]:
    rows, rejected = [], []
    for where, row in READERS[kind](name, source):
        reasons = [row["reason"]] if "reason" in row else row_problems(row)
        if reasons:
            found = {"where": where, "reason": "; ".join(reasons), "question": row["question"]}
            rejected.append(found)
        else:
            rows.append(row)
    if rejected and kind == "file":
        raise InputError(
            f"{source['file']}: {len(rejected)} bad row(s); nothing was written{_listed(rejected)}"
        )
    if not rows:
        place = source["hub"]["repo"] if kind == "hub" else source[kind]
        none = f"none of its {len(rejected)} row(s) is" if rejected else "it holds no row that is"
        raise InputError(f"{place}: {none} a question{_listed(rejected[:5])}")
    return rows, rejected


def _listed(rejected: list[dict]) -> str:
    return "".join(f"\n  {one['where']}: {one['reason']}" for one in rejected[:20])


def read_wheel(name: str, entry: dict) -> Rows:
    """Questions that lm-eval's task files carry as few-shot samples, read as data.

    Parameters
    ----------
    name : str
    entry : dict
        ``wheel``; ``members``, a shell pattern of the task files in it; ``form``, in
        ``WHEEL_FORMS``; ``categories``, category -> list of subjects.
    """
    with tempfile.TemporaryDirectory() as scratch:
        (wheel,) = fetch_wheels([entry["wheel"]], Path(scratch), name)
        yield from WHEEL_FORMS[entry["form"]](wheel, entry)


def flan_cot(wheel: Path, entry: dict) -> Rows:
    """MMLU's dev split in lm-eval's chain-of-thought tasks.

    Each sample holds the options inline, ``(A) .. (B) .. (C) .. (D) ..``, and a worked answer
    that ends in ``The answer is (X).``.
    """
    for file, task in _tasks(wheel, entry["members"]):
        subject = task["dataset_name"]
        category = category_of(subject, entry["categories"], file)
        for index, sample in enumerate(task["fewshot_config"]["samples"]):
            row = named(f"{subject}/{index}", subject, category, "dev")
            yield f"{file}, sample {index}", row | _parse_flan_cot(**sample)


def translated(wheel: Path, entry: dict) -> Rows:
    """Translations of MMLU's dev split in lm-eval's tasks for Llama 3.

    The entry has ``languages``, ``members`` in which ``{language}`` stands, and ``order``: subject
    -> number that each sample has in the English set, whose samples come in another order. A
    question and its translations share their ``cluster``, the English question_id.
    """
    for language in entry["languages"]:
        for file, task in _tasks(wheel, entry["members"].format(language=language)):
            subject = task["task_alias"]
            category = category_of(subject, entry["categories"], file)
            samples = task["fewshot_config"]["samples"]
            numbered = zip(entry["order"][subject], samples, strict=True)
            for index, (number, sample) in enumerate(numbered):
                row = named(f"{subject}/{number}", subject, category, "dev", language)
                row["question_id"] = f"{language}/{row['cluster']}"
                yield f"{file}, sample {index}", row | _parse_translated(**sample)


WHEEL_FORMS = {"flan-cot": flan_cot, "translated": translated}


class _DataLoader(yaml.SafeLoader):
    """Safe YAML in which tags such as ``!function`` stand for nothing."""


_DataLoader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _tasks(wheel: Path, members: str) -> Iterator[tuple[str, dict]]:
    """Name and content of the task files in a wheel."""
    names = wheel_members(wheel, members)
    with zipfile.ZipFile(wheel) as archive:
        for member in names:
            yield Path(member).name, yaml.load(archive.read(member), _DataLoader)


def _parse_flan_cot(question: str, target: str) -> dict:
    parts = re.split(r"\(([A-E])\)", question)
    markers = "".join(parts[1::2])
    left_out = {"question": question.strip()}
    if markers != FOUR:
        return left_out | {"reason": f"options are marked {markers!r}, not 'ABCD'"}
    answer = re.search(r"The answer is \(([A-D])\)\.\s*$", target)
    if answer is None:
        return left_out | {"reason": "the worked answer does not end in 'The answer is (X).'"}
    stem, *choices = [re.sub(r"\s+", " ", part).strip() for part in parts[::2]]
    return {"question": stem, "choices": choices, "answer": FOUR.index(answer[1])}


def _parse_translated(
    input_question: str, input_choice_list: dict, input_correct_responses: list
) -> dict:
    markers = "".join(input_choice_list)
    if markers != FOUR or len(input_correct_responses) != 1:
        answers = ", ".join(input_correct_responses)
        reason = f"options are marked {markers!r} and the answer is {answers!r}; one of 'ABCD' is"
        return {"question": input_question, "reason": f"{reason} expected"}
    return {
        "question": text(input_question),
        "choices": [text(choice) for choice in input_choice_list.values()],
        "answer": answer_index(input_correct_responses[0], FOUR),
    }


def read_hub(name: str, entry: dict) -> Rows:
    """Questions of a dataset on the Hub, at a pinned commit.

    Parameters
    ----------
    name : str
    entry : dict
        ``hub``: ``repo``, ``config`` (if it has several), ``revision``, ``split`` and, if it has
        one, the split of the ``shots``; ``form``, in ``FORMS``; ``subject`` or ``categories``.
    """
    place = entry["hub"]
    for split, raw_rows in _load_splits(place).items():
        seen: Counter[str] = Counter()
        for index, raw in enumerate(raw_rows):
            where = f"{place['repo']}, {split}, row {index}"
            fields = _parse(raw, entry["form"], where)
            subject = fields.pop("subject", entry.get("subject", name))
            number = fields.pop("id", f"{subject}/{seen[subject]}")
            seen[subject] += 1
            category = fields.pop("category", "none")
            if "categories" in entry:
                category = category_of(subject, entry["categories"], where)
            kind = "dev" if split == place.get("shots") else split
            row = named(f"{split}/{number}", subject, category, kind)
            fields["question"] = text(fields["question"])
            fields["choices"] = [text(choice) for choice in fields["choices"]]
            yield where, row | fields


def _load_splits(place: dict) -> dict[str, list[dict]]:
    """Rows of the split to study and of that of the shots, as they are on the Hub."""
    repo, revision = place["repo"], place["revision"]
    splits = [place[key] for key in ("split", "shots") if key in place]
    hub.listing(repo, revision, "dataset")
    # a cache of its own: datasets would fall back on whatever commit it has cached
    with tempfile.TemporaryDirectory() as cache, hub.explained(repo, revision, "dataset"):
        try:
            found = datasets.load_dataset(
                repo, place.get("config"), split=splits, revision=revision, cache_dir=cache
            )
        except DatasetNotFoundError as error:
            raise InputError(
                f"Hub repo {repo}: {error} Accept its licence on its page and set HF_TOKEN to your "
                "token."
            ) from error
        except (ValueError, DatasetGenerationError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise InputError(f"Hub repo {repo}, commit {revision}: {reason}") from error
        return {name: part.to_list() for name, part in zip(splits, found, strict=True)}


def _parse(raw: dict, form: str, where: str) -> dict:
    try:
        return FORMS[form](raw)
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{where}: not a row of the form {form!r} ({type(error).__name__}: {error}); it has "
            f"{', '.join(raw)}"
        ) from error


def _mmlu(raw: dict) -> dict:
    return {name: raw[name] for name in ("subject", "question", "choices", "answer")}


def _labelled(raw: dict) -> dict:
    """AI2's form: options with labels of their own, A to E or 1 to 5."""
    return {
        "id": raw["id"],
        "question": raw["question_stem"] if "question_stem" in raw else raw["question"],
        "choices": raw["choices"]["text"],
        "answer": answer_index(raw["answerKey"], raw["choices"]["label"]),
    }


def _truthfulqa_mc1(raw: dict) -> dict:
    """The true answer always comes first in the dataset: shuffled, by a stable hash."""
    choices, labels = raw["mc1_targets"]["choices"], raw["mc1_targets"]["labels"]
    order = hash_order([f"{raw['question']}\n{choice}" for choice in choices], 0)
    true = [place for place, index in enumerate(order) if labels[index] == 1]
    return {
        "question": raw["question"],
        "choices": [choices[index] for index in order],
        "answer": true[0] if len(true) == 1 else f"{len(true)} of the options",
    }


def _mmlu_pro(raw: dict) -> dict:
    return {
        "id": str(raw["question_id"]),
        "subject": raw["category"],
        "category": raw["category"],
        "question": raw["question"],
        "choices": raw["options"],
        "answer": raw["answer_index"],
    }


FORMS = {
    "mmlu": _mmlu,
    "labelled": _labelled,
    "truthfulqa-mc1": _truthfulqa_mc1,
    "mmlu-pro": _mmlu_pro,
}


READERS = {
    "wheel": read_wheel,
    "hub": read_hub,
    "csv_folder": read_csv_folder,
    "file": read_file,
}
