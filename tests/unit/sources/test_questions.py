"""The question table: its checks, its splits, and the forms of a question that stay together."""

import pytest

from layercal import InputError
from layercal.sources import questions


def asked(name, **fields):
    """A row of the table."""
    names = ("question_id", "cluster", "language", "subject", "category", "question", "split")
    return {**dict.fromkeys(names, name), "choices": list("wxyz"), "answer": 0, **fields}


def test_table_refuses_duplicates_and_nothing():
    row = asked("x")
    assert len(questions.to_table([row])) == 1
    with pytest.raises(InputError, match="x: this question_id occurs twice"):
        questions.to_table([row, row])
    with pytest.raises(InputError, match="no question"):
        questions.to_table([])
    with pytest.raises(InputError, match="x: option C is empty"):
        questions.to_table([{**row, "choices": ["w", "x", ""]}])
    with pytest.raises(InputError, match="answer is 4, expected one of A, B, C, D"):
        questions.to_table([{**row, "answer": 4}])


def test_folds_are_stable_and_even():
    names = [f"subject/{i}" for i in range(281)]
    fold = questions.folds(names, 5, seed=0)
    assert sorted(fold.count(f) for f in range(5)) == [56, 56, 56, 56, 57]
    backwards = questions.folds(names[::-1], 5, seed=0)
    assert backwards[::-1] == fold  # decided by the id, not by the order of rows
    assert questions.folds(names, 5, seed=1) != fold
    with pytest.raises(InputError, match="4 questions cannot be split into 5 folds"):
        questions.folds(names[:4], 5, seed=0)


def test_forms_of_a_question_stay_together():
    """Translations share a cluster, copies get one, and a cluster is never split over folds."""
    clusters = [f"anatomy/{i}" for i in range(30)]
    rows = [
        asked(f"{code}/{name}", cluster=name, question=f"{code} {name}")
        for code in ("de", "th")
        for name in clusters
    ]
    rows[12]["question"] = rows[7]["question"]  # a copy, in German
    rows[12]["choices"] = rows[7]["choices"][::-1]
    table = questions.to_table(rows)
    found = dict(zip(table["question_id"], table["cluster"], strict=True))
    for code in ("de", "th"):  # and then in Thai too, where the two were translated differently
        assert found[f"{code}/anatomy/12"] == found[f"{code}/anatomy/7"] == "anatomy/7"
    assert len(set(found.values())) == 29
    fold = dict(zip(found, questions.folds(table["cluster"], 5, seed=0), strict=True))
    for name in clusters:
        assert fold[f"de/{name}"] == fold[f"th/{name}"]
    assert fold["de/anatomy/7"] == fold["th/anatomy/12"]


def test_shots_come_from_dev_if_there_is_more():
    rows = [asked("a", split="test"), asked("b", split="dev"), asked("c", split="validation")]
    scored, pool = questions.scored_and_shots(rows)
    assert [row["question_id"] for row in scored] == ["a", "c"]
    assert [row["question_id"] for row in pool] == ["b"]
    for only in ("test", "dev"):
        some = [asked(name, split=only) for name in "abc"]
        assert questions.scored_and_shots(some) == (some, some)
