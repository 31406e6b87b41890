"""The question table: read from a source, checked, written once as parquet.

Columns: ``question_id`` (str), ``cluster`` (str, the same for a question's translations and
copies), ``language`` (str), ``subject`` (str), ``category`` (str), ``question`` (str), ``choices``
(list of 4 str), ``answer`` (int, index into choices), ``split`` (str).
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import pandas as pd
import yaml

from layercal import InputError
from layercal.sources import wheel_members

LETTERS = "ABCD"
FEATURES = datasets.Features(
    question_id=datasets.Value("string"),
    cluster=datasets.Value("string"),
    language=datasets.Value("string"),
    subject=datasets.Value("string"),
    category=datasets.Value("string"),
    question=datasets.Value("string"),
    choices=datasets.List(datasets.Value("string")),
    answer=datasets.Value("int64"),
    split=datasets.Value("string"),
)
FORMATS = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}


def read_flan_cot(wheel: Path, entry: dict) -> tuple[list[dict], list[dict]]:
    """Read the MMLU dev split out of lm-eval's chain-of-thought task files.

    Each sample holds the options inline, ``(A) .. (B) .. (C) .. (D) ..``, and a worked answer
    that ends in ``The answer is (X).``. A sample of any other form is rejected, never guessed.

    Parameters
    ----------
    wheel : path
    entry : dict
        ``members``, the shell pattern of the task files in the wheel, and ``categories``,
        category -> list of subjects.

    Returns
    -------
    rows, rejected : list of dict
        ``rejected`` has ``where``, ``reason`` and ``question``.
    """
    rows, rejected = [], []
    for where, task in _read_tasks(wheel, entry["members"]):
        subject = task["dataset_name"]
        category = _category(subject, entry["categories"], where)
        for index, sample in enumerate(task["fewshot_config"]["samples"]):
            fields = _parse_flan_cot(sample["question"], sample["target"])
            if isinstance(fields, str):
                place = {"where": f"{where}, sample {index}", "reason": fields}
                rejected.append({**place, "question": sample["question"].strip()})
                continue
            name = f"{subject}/{index}"
            identity = {"question_id": name, "cluster": name, "language": "en"}
            identity |= {"subject": subject, "category": category, "split": "dev"}
            rows.append({**identity, **fields})
    return rows, rejected


def read_translated(wheel: Path, entry: dict) -> tuple[list[dict], list[dict]]:
    """Read translations of the MMLU dev split out of lm-eval's tasks for Llama 3.

    Parameters
    ----------
    wheel : path
    entry : dict
        ``languages``; ``members``, the shell pattern of the task files, in which ``{language}``
        stands; ``categories``; and ``order``, subject -> number that each sample has in the
        English set, whose samples come in another order.

    Returns
    -------
    rows, rejected : list of dict
        A question and its translations share their ``cluster``, the English question_id.
    """
    rows, rejected = [], []
    for language in entry["languages"]:
        for where, task in _read_tasks(wheel, entry["members"].format(language=language)):
            subject = task["task_alias"]
            category = _category(subject, entry["categories"], where)
            samples = task["fewshot_config"]["samples"]
            for number, sample in zip(entry["order"][subject], samples, strict=True):
                fields = _parse_translated(sample)
                if isinstance(fields, str):
                    place = {"where": f"{where}, sample {samples.index(sample)}", "reason": fields}
                    rejected.append({**place, "question": sample["input_question"]})
                    continue
                cluster = f"{subject}/{number}"
                identity = {"question_id": f"{language}/{cluster}", "cluster": cluster}
                identity |= {"language": language, "subject": subject, "category": category}
                rows.append({**identity, **fields, "split": "dev"})
    return rows, rejected


FORMS = {"flan-cot": read_flan_cot, "translated": read_translated}


def _read_tasks(wheel: Path, members: str) -> Iterator[tuple[str, dict]]:
    """Name and content of the task files in a wheel."""
    names = wheel_members(wheel, members)
    with zipfile.ZipFile(wheel) as archive:
        for member in names:
            yield Path(member).name, yaml.load(archive.read(member), _DataLoader)


def _category(subject: str, categories: dict, where: str) -> str:
    for name, subjects in categories.items():
        if subject in subjects:
            return name
    raise InputError(f"{where}: subject {subject!r} has no category in the config")


class _DataLoader(yaml.SafeLoader):
    """Safe YAML in which tags such as ``!function`` stand for nothing."""


_DataLoader.add_multi_constructor("!", lambda loader, suffix, node: None)


def _parse_flan_cot(question: str, target: str) -> dict | str:
    """Return the fields of a sample, or the reason why it is not a four-option question."""
    parts = re.split(r"\(([A-E])\)", question)
    markers = "".join(parts[1::2])
    if markers != LETTERS:
        return f"options are marked {markers!r}, not 'ABCD'"
    answer = re.search(r"The answer is \(([A-D])\)\.\s*$", target)
    if answer is None:
        return "the worked answer does not end in 'The answer is (X).'"
    stem, *choices = [re.sub(r"\s+", " ", part).strip() for part in parts[::2]]
    return {"question": stem, "choices": choices, "answer": LETTERS.index(answer[1])}


def _parse_translated(sample: dict) -> dict | str:
    """Return the fields of a sample, or the reason why it is not a four-option question."""
    choices, answers = sample["input_choice_list"], sample["input_correct_responses"]
    if "".join(choices) != LETTERS:
        return f"options are marked {''.join(choices)!r}, not 'ABCD'"
    if len(answers) != 1 or answers[0] not in choices:
        return f"the answer is {answers}, not one of the options"
    return {
        "question": sample["input_question"].strip(),
        "choices": [str(choice).strip() for choice in choices.values()],
        "answer": LETTERS.index(answers[0]),
    }


def read_file(path: Path) -> list[dict]:
    """Read a user's own table of questions.

    Parameters
    ----------
    path : path
        CSV, JSON lines or parquet with the columns ``question``, ``A``, ``B``, ``C``, ``D``,
        ``answer`` (a letter A-D), and optionally ``subject``, ``category``, ``question_id``,
        ``language`` and ``cluster`` (the same for questions that belong together).

    Returns
    -------
    list of dict
        Rows of the question table.

    Raises
    ------
    InputError
        If the file cannot be read, a column is missing, or any row is not a question with four
        options and an answer among them; every bad row is named with its reason.
    """
    if path.suffix not in FORMATS:
        raise InputError(f"{path}: expected one of {', '.join(FORMATS)}, found {path.suffix!r}")
    if not path.exists():
        raise InputError(f"{path}: there is no such file")
    try:
        table = datasets.Dataset.from_pandas(_read_pandas(path), preserve_index=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable {path.suffix} table: {error}") from error
    missing = [name for name in ("question", *LETTERS, "answer") if name not in table.column_names]
    if missing:
        raise InputError(
            f"{path}: column {', '.join(missing)} is missing (found: "
            f"{', '.join(table.column_names)}); each question needs question, A, B, C, D, answer"
        )
    problems = [
        f"row {number}: {problem}"
        for number, row in enumerate(table, 1)
        for problem in _row_problems(row)
    ]
    if problems:
        shown = "\n  ".join(problems[:20])
        raise InputError(f"{path}: {len(problems)} problem(s); nothing was written\n  {shown}")
    return [_own_row(row, number, path.stem) for number, row in enumerate(table, 1)]


def _read_pandas(path: Path) -> pd.DataFrame:
    if path.suffix == ".csv":
        return pd.read_csv(path, dtype=str, keep_default_na=False)
    if path.suffix == ".jsonl":
        return pd.read_json(path, lines=True, dtype=False)
    return pd.read_parquet(path)


def _row_problems(row: dict) -> list[str]:
    empty = [name for name in ("question", *LETTERS) if not str(row[name] or "").strip()]
    problems = [f"{name} is empty; four options are needed" for name in empty]
    if row["answer"] not in list(LETTERS):
        problems.append(f"answer is {row['answer']!r}, expected one of A, B, C, D")
    return problems


def _own_row(row: dict, number: int, name: str) -> dict:
    question_id = str(row.get("question_id") or f"{name}/{number}")
    return {
        "question_id": question_id,
        "cluster": str(row.get("cluster") or question_id),
        "language": str(row.get("language") or "none"),
        "subject": str(row.get("subject") or name),
        "category": str(row.get("category") or "none"),
        "question": str(row["question"]),
        "choices": [str(row[letter]) for letter in LETTERS],
        "answer": LETTERS.index(row["answer"]),
        "split": "test",
    }


def to_table(rows: Sequence[dict]) -> datasets.Dataset:
    """Check rows against the schema and return them as one table.

    Raises
    ------
    InputError
        If there are no rows, a question_id occurs twice, a row has not four non-empty options,
        or an answer is not among them.
    """
    if not rows:
        raise InputError("the source holds no question that can be used")
    problems = []
    seen: set[str] = set()
    for row in rows:
        name = row["question_id"]
        if name in seen:
            problems.append(f"{name}: this question_id occurs twice")
        seen.add(name)
        if len(row["choices"]) != len(LETTERS) or not all(row["choices"]):
            problems.append(f"{name}: expected 4 non-empty options, found {row['choices']}")
        if row["answer"] not in range(len(LETTERS)):
            problems.append(f"{name}: answer {row['answer']} is none of 0, 1, 2, 3")
    if problems:
        raise InputError("the question table is not valid\n  " + "\n  ".join(problems[:20]))
    return datasets.Dataset.from_list(_join_copies(rows), features=FEATURES)


def _join_copies(rows: Sequence[dict]) -> list[dict]:
    """Give a question that is there twice, in any language, one cluster.

    No copy is then scored by what was fitted on another.
    """
    same: dict[str, str] = {}
    first: dict[tuple, str] = {}

    def top(cluster: str) -> str:
        while cluster in same:
            cluster = same[cluster]
        return cluster

    for row in rows:
        asked = (row["question"], *sorted(row["choices"]))
        old, new = top(first.setdefault(asked, row["cluster"])), top(row["cluster"])
        if old != new:
            same[new] = old
    return [{**row, "cluster": top(row["cluster"])} for row in rows]


def load(path: str | Path) -> datasets.Dataset:
    """Load a question table written by the workflow (cached by datasets)."""
    return datasets.Dataset.from_parquet(str(path), features=FEATURES)


def hash_order(question_ids: Sequence[str], seed: int) -> list[int]:
    """Rank questions by a stable hash of their ids: a random order that never changes.

    Parameters
    ----------
    question_ids : sequence of str
    seed : int

    Returns
    -------
    list of int
        Row indices, lowest hash first.
    """
    digests = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in question_ids]
    return sorted(range(len(digests)), key=digests.__getitem__)


def folds(clusters: Sequence[str], n_folds: int, seed: int) -> list[int]:
    """Assign each question to one of K folds of equal size, by a stable hash of its cluster.

    Parameters
    ----------
    clusters : sequence of str
        Rows of one cluster (translations, copies and permutations of a question) stay in one fold.
    n_folds : int
        K, at least 3 (fit, select and score are kept apart).
    seed : int

    Returns
    -------
    list of int
        Fold of each row, 0 to K - 1.

    Raises
    ------
    InputError
        If there are fewer questions than folds.
    """
    distinct = list(dict.fromkeys(clusters))
    if len(distinct) < n_folds:
        raise InputError(f"{len(distinct)} questions cannot be split into {n_folds} folds")
    order = hash_order(distinct, seed)
    assigned = {distinct[row]: rank % n_folds for rank, row in enumerate(order)}
    return [assigned[name] for name in clusters]
