"""The question table: checked, written once as parquet, split by stable hashes.

Columns: ``question_id`` (str), ``cluster`` (str, the same for a question's translations and
copies), ``language`` (str), ``subject`` (str), ``category`` (str), ``question`` (str), ``choices``
(list of 2 to 10 str), ``answer`` (int, index into choices), ``split`` (str; rows of ``dev`` are
shots, if there are others), ``flag`` (str: what reviewers found wrong with the question, ``ok`` if
nothing; empty if none looked).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from layercal import InputError

LETTERS = "ABCDEFGHIJ"
SCHEMA = pa.schema(
    {
        "question_id": pa.string(),
        "cluster": pa.string(),
        "language": pa.string(),
        "subject": pa.string(),
        "category": pa.string(),
        "split": pa.string(),
        "question": pa.string(),
        "choices": pa.list_(pa.string()),
        "answer": pa.int64(),
        "flag": pa.string(),
    }
)


def text(value: object) -> str:
    """Text of a source's value: as written, without space around it; none if it is missing.

    Line ends become a line feed, whatever system the source was written on.

    Parameters
    ----------
    value : str, int, float, bool or None
    """
    if value is None:
        return ""
    written = json.dumps(value) if isinstance(value, bool) else str(value)
    return re.sub("\r\n?", "\n", written).strip()


def named(
    name: str, subject: str, category: str, split: str, language: str = "en", flag: str = ""
) -> dict:
    """Begin a row of the table: all but the question, its options and their answer."""
    return {
        "question_id": name,
        "cluster": name,
        "language": language,
        "subject": subject,
        "category": category,
        "split": split,
        "flag": flag,
    }


def category_of(subject: str, categories: dict, where: str) -> str:
    """Find the category that lists a subject.

    Raises
    ------
    InputError
        If none does.
    """
    for name, subjects in categories.items():
        if subject in subjects:
            return name
    raise InputError(f"{where}: subject {subject!r} has no category in the config")


def answer_index(answer: object, labels: Iterable) -> object:
    """Place of the answer among the labels, or the answer itself if it is none of them."""
    labels = list(labels)
    return labels.index(answer) if answer in labels else answer


def row_problems(row: dict) -> list[str]:
    """Say why a row is not a question with 2 to 10 options and an answer among them.

    Parameters
    ----------
    row : dict
        With ``question``, ``choices`` and ``answer``, an index; anything else is reported as is.
    """
    letters = LETTERS[: len(row["choices"])]
    problems = [] if row["question"] else ["the question is empty"]
    if not 2 <= len(row["choices"]) <= len(LETTERS):
        problems.append(f"{len(row['choices'])} options; 2 to {len(LETTERS)} can be read")
    problems += [
        f"option {letter} is empty"
        for letter, choice in zip(letters, row["choices"], strict=False)
        if not choice
    ]
    if row["answer"] not in range(len(letters)):
        problems.append(f"answer is {row['answer']!r}, expected one of {', '.join(letters)}")
    return problems


def to_table(rows: Sequence[dict]) -> pd.DataFrame:
    """Check rows and return them as one table.

    Copies of a question, those of a translation too, get one cluster: none of them is then scored
    by what was fitted on another.

    Raises
    ------
    InputError
        If there are no rows, a question_id occurs twice, or a row has :func:`row_problems`.
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
        problems += [f"{name}: {problem}" for problem in row_problems(row)]
    if problems:
        raise InputError("the question table is not valid\n  " + "\n  ".join(problems[:20]))
    return pa.Table.from_pylist(_join_copies(rows), SCHEMA).to_pandas()


def _join_copies(rows: Sequence[dict]) -> list[dict]:
    same: dict[str, str] = {}
    first: dict[tuple, str] = {}

    def top(cluster: str) -> str:
        while cluster in same:
            cluster = same[cluster]
        return cluster

    for row in rows:
        old, new = top(first.setdefault(_asked(row), row["cluster"])), top(row["cluster"])
        if old != new:
            same[new] = old
    return [{**row, "cluster": top(row["cluster"])} for row in rows]


def copies(rows: Sequence[dict]) -> int:
    """Count the rows that ask what an earlier one asks: the same text and options."""
    return len(rows) - len({_asked(row) for row in rows})


def _asked(row: dict) -> tuple:
    return row["question"], *sorted(row["choices"])


def scored_and_shots(rows: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """Part a table into the questions to score and those to take shots from.

    Rows of the split ``dev`` are shots if there are others; a table without such a split is both.
    """
    dev = [row for row in rows if row["split"] == "dev"]
    scored = [row for row in rows if row["split"] != "dev"]
    return (scored, dev) if scored and dev else (list(rows), list(rows))


def load(path: str | Path) -> list[dict]:
    """Load the rows of a question table written by the workflow, from the file itself."""
    return pq.read_table(path, partitioning=None).cast(SCHEMA).to_pylist()


def hash_order(names: Sequence[str], seed: int) -> list[int]:
    """Rank questions by a stable hash of their names: a random order that never changes.

    Parameters
    ----------
    names : sequence of str
    seed : int

    Returns
    -------
    list of int
        Indices, lowest hash first.
    """
    digests = [hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in names]
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
