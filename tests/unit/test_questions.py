"""Question tables from lm-eval's samples and from users' own files; prompts and option letters."""

import json
import zipfile

import pandas as pd
import pytest
import yaml
from conftest import ROOT, word_tokenizer

from layercal import InputError, prompts, questions

REGISTRY = yaml.safe_load((ROOT / "config/questions.yaml").read_text())
CATEGORIES = REGISTRY["mmlu-dev"]["categories"]
GOOD = {"question": "One?", "A": "w", "B": "x", "C": "y", "D": "z", "answer": "C"}


def test_categories_are_hendrycks():
    """57 subjects; 19 STEM, 13 Humanities, 12 Social Sciences, 13 Other, as in categories.py."""
    sizes = {name: len(subjects) for name, subjects in CATEGORIES.items()}
    assert sum(sizes.values()) == 57
    assert len({subject for subjects in CATEGORIES.values() for subject in subjects}) == 57
    assert "anatomy" in CATEGORIES["Other"]


def flan_wheel(tmp_path, samples, subject="anatomy"):
    wheel = tmp_path / "tasks-1-py3-none-any.whl"
    text = yaml.safe_dump({"dataset_name": subject, "fewshot_config": {"samples": samples}})
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tasks/mmlu_anatomy.yaml", text + "doc_to_text: !function x.y\n")
    return wheel


def flan(question, answer="B"):
    return {"question": question, "target": f"Let's think. The answer is ({answer})."}


def test_flan_cot_samples(tmp_path):
    wheel = flan_wheel(
        tmp_path,
        [
            flan("Which (of\nthese)?\n(A) one (B) two\n(C) three  more (D) four"),
            flan("Three?\n(A) 1 (B) 2 (C) 3"),
            flan("Five?\n(A) 1 (B) 2 (C) 3 (D) 4 (E) 5"),
            flan("Beyond?\n(A) 1 (B) 2 (C) 3 (D) 4", "E"),
            {"question": "None?\n(A) 1 (B) 2 (C) 3 (D) 4", "target": "Who knows."},
        ],
    )
    entry = {"members": "*.yaml", "categories": {"Other": ["anatomy"]}}
    rows, rejected = questions.read_flan_cot(wheel, entry)
    assert rows == [
        {
            "question_id": "anatomy/0",
            "cluster": "anatomy/0",
            "language": "en",
            "subject": "anatomy",
            "category": "Other",
            "question": "Which (of these)?",
            "choices": ["one", "two", "three more", "four"],
            "answer": 1,
            "split": "dev",
        }
    ]
    assert [one["where"] for one in rejected] == [
        f"mmlu_anatomy.yaml, sample {i}" for i in range(1, 5)
    ]
    assert "'ABC'" in rejected[0]["reason"]
    assert "'ABCDE'" in rejected[1]["reason"]
    assert "does not end" in rejected[2]["reason"]
    with pytest.raises(InputError, match="'anatomy' has no category"):
        questions.read_flan_cot(wheel, {**entry, "categories": {"Other": []}})
    with pytest.raises(InputError, match="no file in it matches"):
        questions.read_flan_cot(wheel, {**entry, "members": "*.json"})


def translated(question, answer="B", letters="ABCD"):
    choices = {letter: f"{letter} {question}" for letter in letters}
    return {
        "input_question": question,
        "input_choice_list": choices,
        "input_correct_responses": [*answer],
    }


def test_translated_samples(tmp_path):
    """Numbered as in the English set, whose order is another."""
    wheel = tmp_path / "tasks-1-py3-none-any.whl"
    samples = {
        "de": [translated("Zwei?", "D"), translated("Eins?")],
        "th": [translated("สอง?", "D"), translated("หนึ่ง?", letters="ABCDE")],
        "it": [translated("Due?", "E"), translated("Uno?", "AB")],
    }
    with zipfile.ZipFile(wheel, "w") as archive:
        for language, some in samples.items():
            task = {"task_alias": "anatomy", "fewshot_config": {"samples": some}}
            text = yaml.safe_dump(task) + "process_docs: !function x.y\n"
            archive.writestr(f"mmlu_{language}/mmlu_{language}_anatomy.yaml", text)
    entry = {
        "members": "mmlu_{language}/*.yaml",
        "languages": ["de", "th", "it"],
        "categories": {"Other": ["anatomy"]},
        "order": {"anatomy": [1, 0]},
    }
    rows, rejected = questions.read_translated(wheel, entry)
    assert rows[0] == {
        "question_id": "de/anatomy/1",
        "cluster": "anatomy/1",
        "language": "de",
        "subject": "anatomy",
        "category": "Other",
        "question": "Zwei?",
        "choices": ["A Zwei?", "B Zwei?", "C Zwei?", "D Zwei?"],
        "answer": 3,
        "split": "dev",
    }
    assert [row["question_id"] for row in rows] == ["de/anatomy/1", "de/anatomy/0", "th/anatomy/1"]
    assert [one["where"] for one in rejected] == [
        "mmlu_th_anatomy.yaml, sample 1",
        "mmlu_it_anatomy.yaml, sample 0",
        "mmlu_it_anatomy.yaml, sample 1",
    ]
    assert "'ABCDE'" in rejected[0]["reason"]
    assert "['A', 'B']" in rejected[2]["reason"]


def test_translated_sets_are_numbered_once():
    """Seven languages under one numbering: each subject's five samples are five questions."""
    subjects = {subject for some in CATEGORIES.values() for subject in some}
    for code in (*REGISTRY["mmlu-dev-multilingual"]["languages"], "multilingual"):
        order = REGISTRY[f"mmlu-dev-{code}"]["order"]
        assert set(order) == subjects
        assert all(sorted(numbers) == [0, 1, 2, 3, 4] for numbers in order.values())
    assert len(REGISTRY["mmlu-dev-multilingual"]["languages"]) == 7


def write(path, rows):
    frame = pd.DataFrame(rows)
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        frame.to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_own_file(tmp_path, suffix):
    rows = [GOOD, {**GOOD, "question": 'Commas, "quotes"\nand 日本語?', "A": "007", "answer": "A"}]
    read = questions.read_file(write(tmp_path / f"own{suffix}", rows))
    table = questions.to_table(read)
    assert list(table["question_id"]) == ["own/1", "own/2"]
    assert table[1]["question"] == rows[1]["question"]
    assert table[1]["choices"] == ["007", "x", "y", "z"]
    assert list(table["answer"]) == [2, 0]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_own_file_names_every_bad_row(tmp_path, suffix):
    rows = [GOOD, {**GOOD, "D": ""}, {**GOOD, "answer": "E"}]
    with pytest.raises(InputError) as error:
        questions.read_file(write(tmp_path / f"own{suffix}", rows))
    message = str(error.value)
    assert "2 problem(s)" in message
    assert "row 2: D is empty; four options are needed" in message
    assert "row 3: answer is 'E', expected one of A, B, C, D" in message


def test_own_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        questions.read_file(tmp_path / "none.csv")
    with pytest.raises(InputError, match=r"expected one of \.csv, \.jsonl, \.parquet"):
        questions.read_file(write(tmp_path / "own.csv", [GOOD]).rename(tmp_path / "own.xlsx"))
    three = [{key: value for key, value in GOOD.items() if key != "D"}]
    with pytest.raises(InputError, match="column D is missing"):
        questions.read_file(write(tmp_path / "three.csv", three))
    for name in ("broken.jsonl", "broken.parquet", "empty.csv"):
        path = tmp_path / name
        path.write_bytes(b"" if "empty" in name else b"\xff\xfe{not a table")
        with pytest.raises(InputError, match=name):
            questions.read_file(path)


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
    with pytest.raises(InputError, match="expected 4 non-empty options"):
        questions.to_table([{**row, "choices": ["w", "x", ""]}])
    with pytest.raises(InputError, match="answer 4 is none of"):
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


def test_hendrycks_prompt():
    row = {"subject": "high_school_physics", "question": "Why?", "choices": list("wxyz")}
    assert prompts.hendrycks(row) == (
        "The following are multiple choice questions (with answers) about high school physics."
        "\n\nWhy?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )


def test_option_letters_are_single_tokens():
    tokenizer = word_tokenizer(" ABCD")
    input_ids, option_ids = prompts.tokenize(tokenizer, ["One Answer:", "Two Answer:"])
    assert tokenizer.convert_ids_to_tokens(option_ids) == ["ĠA", "ĠB", "ĠC", "ĠD"]
    assert [tokenizer.convert_ids_to_tokens(ids)[:3] for ids in input_ids] == [[*"One"], [*"Two"]]


def test_option_letters_that_are_not_single_tokens_are_refused():
    with pytest.raises(InputError, match=r"option letter 'D'.*exactly one token.*'Ġ', 'D'"):
        prompts.tokenize(word_tokenizer(" ABC"), ["Answer:"])
