"""Where questions come from: wheels, the Hub, MMLU's own folder, users' files.

A reader is a function ``(name, entry) -> (where, row), ...`` of an entry of
``config/questions.yaml``, found in ``READERS`` by the key that names the entry's source. A form is
a function from a dataset's own row to the fields of ours, found by name in ``FORMS``.
"""

from __future__ import annotations

import csv
import json
import re
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import datasets
import pandas as pd
import pyarrow as pa
import yaml
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from layercal import InputError, hub
from layercal.questions import LETTERS, hash_order, row_problems
from layercal.sources import fetch_wheels, first_usable, wheel_members

FOUR = LETTERS[:4]
FORMATS = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}
Rows = Iterator[tuple[str, dict]]


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
    return first_usable(name, entry, READERS, lambda *source: _read_source(name, *source))


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
        lines = "\n  ".join(f"{one['where']}: {one['reason']}" for one in rejected[:20])
        raise InputError(
            f"{source['file']}: {len(rejected)} bad row(s); nothing was written\n  {lines}"
        )
    return rows, rejected


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
        category = _category(subject, entry["categories"], file)
        for index, sample in enumerate(task["fewshot_config"]["samples"]):
            row = _row(f"{subject}/{index}", subject, category, "dev")
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
            category = _category(subject, entry["categories"], file)
            samples = task["fewshot_config"]["samples"]
            numbered = zip(entry["order"][subject], samples, strict=True)
            for index, (number, sample) in enumerate(numbered):
                row = _row(f"{subject}/{number}", subject, category, "dev", language)
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


def _row(name: str, subject: str, category: str, split: str, language: str = "en") -> dict:
    return {
        "question_id": name,
        "cluster": name,
        "language": language,
        "subject": subject,
        "category": category,
        "split": split,
    }


def _category(subject: str, categories: dict, where: str) -> str:
    for name, subjects in categories.items():
        if subject in subjects:
            return name
    raise InputError(f"{where}: subject {subject!r} has no category in the config")


def _index(answer, labels: Iterable):
    """Place of the answer among the labels, or the answer itself if it is none of them."""
    labels = list(labels)
    return labels.index(answer) if answer in labels else answer


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
        "question": input_question.strip(),
        "choices": [str(choice).strip() for choice in input_choice_list.values()],
        "answer": _index(input_correct_responses[0], FOUR),
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
                category = _category(subject, entry["categories"], where)
            kind = "dev" if split == place.get("shots") else split
            row = _row(f"{split}/{number}", subject, category, kind)
            yield where, row | _stripped(fields)


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


def _stripped(fields: dict) -> dict:
    choices = [str(choice or "").strip() for choice in fields["choices"]]
    return fields | {"question": str(fields["question"] or "").strip(), "choices": choices}


def _mmlu(raw: dict) -> dict:
    return {name: raw[name] for name in ("subject", "question", "choices", "answer")}


def _labelled(raw: dict) -> dict:
    """AI2's form: options with labels of their own, A to E or 1 to 5."""
    return {
        "id": raw["id"],
        "question": raw["question_stem"] if "question_stem" in raw else raw["question"],
        "choices": raw["choices"]["text"],
        "answer": _index(raw["answerKey"], raw["choices"]["label"]),
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


def read_csv_folder(name: str, entry: dict) -> Rows:
    """MMLU as its authors give it: ``test/{subject}_test.csv`` and, for shots, ``dev/`` alike.

    Parameters
    ----------
    name : str
    entry : dict
        ``csv_folder``, ``categories``. Rows have the question, four options and a letter.
    """
    folder = Path(entry["csv_folder"])
    files = {split: sorted((folder / split).glob(f"*_{split}.csv")) for split in ("test", "dev")}
    if not files["test"]:
        raise InputError(f"{folder}: expected MMLU's folder, with test/<subject>_test.csv in it")
    for split, paths in files.items():
        for path in paths:
            subject = path.stem.removesuffix(f"_{split}")
            category = _category(subject, entry["categories"], str(path))
            for index, (line, cells) in enumerate(_csv_lines(path)):
                row = _row(f"{split}/{subject}/{index}", subject, category, split)
                yield f"{split}/{path.name}, line {line}", row | _parse_csv(cells)


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line, counted from 1, at which each row starts, and its cells."""
    with path.open(newline="", encoding="utf-8") as file:
        lines, start = csv.reader(file), 1
        for cells in lines:
            yield start, cells
            start = lines.line_num + 1


def _parse_csv(cells: list[str]) -> dict:
    if len(cells) != 6:
        reason = f"{len(cells)} cells; expected the question, four options and the answer"
        return {"question": cells[0] if cells else "", "reason": reason}
    question, *choices, answer = (cell.strip() for cell in cells)
    return {"question": question, "choices": choices, "answer": _index(answer, FOUR)}


def read_file(name: str, entry: dict) -> Rows:
    """Read a user's own table.

    Parameters
    ----------
    name : str
    entry : dict
        ``file``: CSV, JSON lines or parquet with the columns ``question``; ``A``, ``B`` and so on,
        or ``choices``, a list of 2 to 10, where questions differ in their number of options;
        ``answer``, a letter; and optionally ``subject``, ``category``, ``question_id``,
        ``language``, ``cluster`` (the same for questions that belong together) and ``split``
        (``dev`` for shots).
    """
    path = Path(entry["file"])
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: expected one of {', '.join(FORMATS)}, found {path.suffix!r}")
    if not path.exists():
        raise InputError(f"{path}: there is no such file")
    try:
        table = datasets.Dataset.from_pandas(_read_pandas(path), preserve_index=False)
    except (ValueError, TypeError, OverflowError, RecursionError, pa.ArrowException) as error:
        raise InputError(f"{path}: not a readable {path.suffix} table: {error}") from error
    letters = _option_columns(path, table.column_names)
    for number, raw in enumerate(table, 1):
        identity = str(raw.get("question_id") or f"{path.stem}/{number}")
        row = _row(
            identity,
            str(raw.get("subject") or path.stem),
            str(raw.get("category") or "none"),
            str(raw.get("split") or "test"),
            str(raw.get("language") or "none"),
        )
        choices = [raw[letter] for letter in letters] if letters else _choices(raw["choices"])
        fields = _stripped({"question": raw["question"], "choices": choices})
        row["cluster"] = str(raw.get("cluster") or identity)
        # letters only: whether a number counts from 0 or 1 would be a guess
        answer = _index(str(raw["answer"]), LETTERS[: len(choices)])
        yield f"row {number}", row | fields | {"answer": answer}


def _read_pandas(path: Path) -> pd.DataFrame:
    if path.suffix == ".csv":
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    if path.suffix == ".jsonl":
        return pd.DataFrame(list(_json_lines(path)))
    return pd.read_parquet(path)


def _json_lines(path: Path) -> Iterator[dict]:
    # not by pandas, which takes lines of other kinds for rows and dates for numbers
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"line {number} is {line[:40]!r}; expected an object, {{...}}")
            yield row


def _option_columns(path: Path, columns: list[str]) -> str:
    """Letters of the option columns, or none if the options stand in ``choices``."""
    letters = "".join(letter for letter in LETTERS if letter in columns)
    missing = [column for column in ("question", "answer") if column not in columns]
    if "choices" in columns and not letters and not missing:
        return ""
    if len(letters) < 2 or not LETTERS.startswith(letters):
        expected = LETTERS[: max(2, LETTERS.find(letters[-1:]) + 1)]
        missing += [letter for letter in expected if letter not in letters]
    if missing:
        raise InputError(
            f"{path}: column {', '.join(missing)} is missing (found: {', '.join(columns)}); each "
            "question needs question, answer, and its options in A, B .. or in a list, choices"
        )
    return letters


def _choices(cell) -> list:
    """The options in a cell: a list, in CSV as JSON."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except ValueError:
            return []
    return list(cell) if isinstance(cell, list) else []


READERS = {
    "wheel": read_wheel,
    "hub": read_hub,
    "csv_folder": read_csv_folder,
    "file": read_file,
}
