"""Question tables from lm-eval's samples, datasets on the Hub, and several sources."""

import zipfile

import pytest
import yaml
from conftest import ROOT

from layercal import InputError
from layercal.sources import question_sources, questions

REGISTRY = yaml.safe_load((ROOT / "config/questions.yaml").read_text())
CATEGORIES = REGISTRY["mmlu-dev"]["categories"]


def test_categories_are_hendrycks():
    """57 subjects; 19 STEM, 13 Humanities, 12 Social Sciences, 13 Other, as in categories.py."""
    sizes = {name: len(subjects) for name, subjects in CATEGORIES.items()}
    assert sum(sizes.values()) == 57
    assert len({subject for subjects in CATEGORIES.values() for subject in subjects}) == 57
    assert "anatomy" in CATEGORIES["Other"]


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """Stands for the wheel downloaded; filled with ``pack``."""
    path = tmp_path / "tasks-1-py3-none-any.whl"
    monkeypatch.setattr(question_sources, "fetch_wheels", lambda *wheels: [path])
    return path


def pack(wheel, tasks):
    with zipfile.ZipFile(wheel, "w") as archive:
        for name, task in tasks.items():
            archive.writestr(name, yaml.safe_dump(task) + "process_docs: !function x.y\n")


def flan(question, answer="B"):
    return {"question": question, "target": f"Let's think. The answer is ({answer})."}


def test_flan_cot_samples(wheel):
    samples = [
        flan("Which (of\nthese)?\n(A) one (B) two\n(C) three  more (D) four"),
        flan("Three?\n(A) 1 (B) 2 (C) 3"),
        flan("Five?\n(A) 1 (B) 2 (C) 3 (D) 4 (E) 5"),
        flan("Beyond?\n(A) 1 (B) 2 (C) 3 (D) 4", "E"),
        {"question": "None?\n(A) 1 (B) 2 (C) 3 (D) 4", "target": "Who knows."},
    ]
    task = {"dataset_name": "anatomy", "fewshot_config": {"samples": samples}}
    pack(wheel, {"tasks/mmlu_anatomy.yaml": task})
    entry = {"wheel": "", "members": "*.yaml", "form": "flan-cot"}
    entry["categories"] = {"Other": ["anatomy"]}
    rows, rejected = question_sources.read("x", entry)
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
            "flag": "",
        }
    ]
    assert [one["where"] for one in rejected] == [
        f"mmlu_anatomy.yaml, sample {i}" for i in range(1, 5)
    ]
    assert "'ABC'" in rejected[0]["reason"]
    assert "'ABCDE'" in rejected[1]["reason"]
    assert "does not end" in rejected[2]["reason"]
    with pytest.raises(InputError, match="'anatomy' has no category"):
        question_sources.read("x", {**entry, "categories": {"Other": []}})
    with pytest.raises(InputError, match="no file in it matches"):
        question_sources.read("x", {**entry, "members": "*.json"})


def translated(question, answer="B", letters="ABCD"):
    choices = {letter: f"{letter} {question}" for letter in letters}
    return {
        "input_question": question,
        "input_choice_list": choices,
        "input_correct_responses": [*answer],
    }


def test_translated_samples(wheel):
    """Numbered as in the English set, whose order is another."""
    samples = {
        "de": [translated("Zwei?", "D"), translated("Eins?")],
        "th": [translated("สอง?", "D"), translated("หนึ่ง?", letters="ABCDE")],
        "it": [translated("Due?", "E"), translated("Uno?", "AB")],
    }
    tasks = {
        f"mmlu_{code}/mmlu_{code}_anatomy.yaml": {
            "task_alias": "anatomy",
            "fewshot_config": {"samples": some},
        }
        for code, some in samples.items()
    }
    pack(wheel, tasks)
    entry = {
        "wheel": "",
        "form": "translated",
        "members": "mmlu_{language}/*.yaml",
        "languages": ["de", "th", "it"],
        "categories": {"Other": ["anatomy"]},
        "order": {"anatomy": [1, 0]},
    }
    rows, rejected = question_sources.read("x", entry)
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
        "flag": "",
    }
    assert [row["question_id"] for row in rows] == ["de/anatomy/1", "de/anatomy/0", "th/anatomy/1"]
    assert [one["where"] for one in rejected] == [
        "mmlu_th_anatomy.yaml, sample 1",
        "mmlu_it_anatomy.yaml, sample 0",
        "mmlu_it_anatomy.yaml, sample 1",
    ]
    assert "'ABCDE'" in rejected[0]["reason"]
    assert "answer is 'E', expected one of A, B, C, D" in rejected[1]["reason"]
    assert "the answer is 'A, B'" in rejected[2]["reason"]


def test_translated_sets_are_numbered_once():
    """Seven languages under one numbering: each subject's five samples are five questions."""
    subjects = {subject for some in CATEGORIES.values() for subject in some}
    for code in (*REGISTRY["mmlu-dev-multilingual"]["languages"], "multilingual"):
        order = REGISTRY[f"mmlu-dev-{code}"]["order"]
        assert set(order) == subjects
        assert all(sorted(numbers) == [0, 1, 2, 3, 4] for numbers in order.values())
    assert len(REGISTRY["mmlu-dev-multilingual"]["languages"]) == 7


def served(hub, name, splits):
    """An entry of the registry, pinned to made rows on the loopback Hub."""
    entry = REGISTRY[name]
    place = entry["hub"]
    revision = hub.add_dataset(place["repo"], splits, place.get("config", "default"))
    return {**entry, "hub": {**place, "revision": revision}}


def labelled(name, labels, key, question="question"):
    choices = {"text": [f"{name} {label}" for label in labels], "label": list(labels)}
    return {"id": name, question: f"{name}?", "choices": choices, "answerKey": key}


MMLU = {"subject": "anatomy", "choices": list("wxyz"), "answer": 1}
TRUE = ["true", "false", "not so", "no", "never"]
PRO = {"category": "law", "answer": "C", "answer_index": 2, "cot_content": "", "src": "x"}
DATASETS = {
    "mmlu": {
        "test": [
            {"question": " One?", **MMLU},
            {"question": "Two?", **MMLU, "subject": "virology"},
            {"question": "", **MMLU},
        ],
        "dev": [{"question": "Shot?", **MMLU}],
        "auxiliary_train": [{"question": "Unused?", **MMLU}],
    },
    "arc-easy": {
        "test": [labelled("m1", "1234", "4"), labelled("m2", "ABC", "B"), labelled("m3", "AB", "")],
        "validation": [labelled("v1", "ABCDE", "E")],
    },
    "arc-challenge": {
        "test": [labelled("c1", "ABCD", "A")],
        "validation": [labelled("c2", "ABCD", "B")],
    },
    "openbookqa": {
        "test": [labelled("o1", "ABCD", "C", "question_stem")],
        "validation": [labelled("o2", "ABCD", "D", "question_stem")],
    },
    "commonsenseqa": {
        "validation": [{**labelled("s1", "ABCDE", "E"), "question_concept": "x"}],
        "train": [{**labelled("s2", "ABCDE", "A"), "question_concept": "x"}],
    },
    "truthfulqa-mc1": {
        "validation": [
            {"question": f"True {i}?", "mc1_targets": {"choices": TRUE, "labels": [1, 0, 0, 0, 0]}}
            for i in range(40)
        ]
        + [{"question": "Two?", "mc1_targets": {"choices": TRUE, "labels": [1, 1, 0, 0, 0]}}]
    },
    "mmlu-pro": {
        "test": [
            {"question_id": 70, "question": "Ten?", "options": list("abcdefghij"), **PRO},
            {"question_id": 71, "question": "Three?", "options": list("abc"), **PRO},
        ],
        "validation": [{"question_id": 0, "question": "Shot?", "options": list("abcd"), **PRO}],
    },
}
EXPECTED = {  # (question_id, split, subject, category, options, answer)
    "mmlu": [
        ("test/anatomy/0", "test", "anatomy", "Other", "wxyz", 1),
        ("test/virology/0", "test", "virology", "Other", "wxyz", 1),
        ("dev/anatomy/0", "dev", "anatomy", "Other", "wxyz", 1),
    ],
    "arc-easy": [
        ("test/m1", "test", "science", "none", "1234", 3),
        ("test/m2", "test", "science", "none", "ABC", 1),
        ("validation/v1", "dev", "science", "none", "ABCDE", 4),
    ],
    "arc-challenge": [
        ("test/c1", "test", "science", "none", "ABCD", 0),
        ("validation/c2", "dev", "science", "none", "ABCD", 1),
    ],
    "openbookqa": [
        ("test/o1", "test", "elementary science", "none", "ABCD", 2),
        ("validation/o2", "dev", "elementary science", "none", "ABCD", 3),
    ],
    "commonsenseqa": [
        ("validation/s1", "validation", "common sense", "none", "ABCDE", 4),
        ("train/s2", "dev", "common sense", "none", "ABCDE", 0),
    ],
    "mmlu-pro": [
        ("test/70", "test", "law", "law", "abcdefghij", 2),
        ("test/71", "test", "law", "law", "abc", 2),
        ("validation/0", "dev", "law", "law", "abcd", 2),
    ],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_dataset_on_the_hub(hub, name):
    rows, rejected = question_sources.read(name, served(hub, name, DATASETS[name]))
    assert [
        (
            row["question_id"],
            row["split"],
            row["subject"],
            row["category"],
            "".join(choice[-1] for choice in row["choices"]),
            row["answer"],
        )
        for row in rows
    ] == EXPECTED[name]
    questions.to_table(rows)
    reasons = {
        "mmlu": ["cais/mmlu, test, row 2: the question is empty"],
        "arc-easy": ["allenai/ai2_arc, test, row 2: answer is '', expected one of A, B"],
    }
    assert [f"{one['where']}: {one['reason']}" for one in rejected] == reasons.get(name, [])


def test_truthfulqa_is_shuffled_for_good(hub):
    """The true answer comes first in the dataset: there, 'A' would always be right."""
    entry = served(hub, "truthfulqa-mc1", DATASETS["truthfulqa-mc1"])
    rows, rejected = question_sources.read("truthfulqa-mc1", entry)
    answers = [row["answer"] for row in rows]
    assert [row["choices"][row["answer"]] for row in rows] == ["true"] * 40
    assert set(answers) == {0, 1, 2, 3, 4} and max(map(answers.count, answers)) < 20
    assert answers[:8] == [4, 2, 0, 4, 1, 1, 4, 4]  # on every machine
    assert [one["question"] for one in rejected] == ["Two?"]
    assert "answer is '2 of the options'" in rejected[0]["reason"]


def refused(entry):
    with pytest.raises(InputError) as error:
        question_sources.read("mmlu", entry)
    return str(error.value)


def test_hub_refusals_are_explained(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's retries
    entry = served(hub, "mmlu", DATASETS["mmlu"])
    commit = entry["hub"]["revision"]

    def changed(**place):
        return {**entry, "hub": {**entry["hub"], **place}}

    said = refused(changed(revision="main"))
    assert f"in config/questions.yaml; now it is {commit}" in said
    assert f"has no commit {'0' * 40}" in refused(changed(revision="0" * 40))
    assert "there is none of that name" in refused(changed(repo="cais/none"))
    assert "'none' not found. Available: ['all']" in refused(changed(config="none"))
    assert 'Unknown split "tests"' in refused(changed(split="tests"))
    said = refused({**entry, "form": "mmlu-pro"})
    assert "cais/mmlu, test, row 0: not a row of the form 'mmlu-pro' (KeyError" in said
    assert "it has question, subject, choices, answer" in said
    hub.stop()
    assert f"{hub.url} could not be reached" in refused(entry)


def test_gated_dataset_is_explained(hub):
    entry = served(hub, "mmlu", DATASETS["mmlu"])
    hub.gated["cais/mmlu"] = "a token"
    said = refused(entry)
    assert "gated" in said and "set HF_TOKEN" in said


def test_broken_download_is_explained_and_taken_up(hub, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    entry = served(hub, "mmlu", DATASETS["mmlu"])
    hub.cut["all/test-00000-of-00001.parquet"] = 100
    assert "run again" in refused(entry)
    hub.cut.clear()
    assert len(question_sources.read("mmlu", entry)[0]) == 3


def test_sources_are_tried_in_order(hub, tmp_path):
    entry = served(hub, "mmlu", DATASETS["mmlu"])
    (tmp_path / "own.csv").write_text("question,A,B,answer\nOne?,w,x,A\n")
    own = {"file": str(tmp_path / "own.csv")}
    missing = {"csv_folder": str(tmp_path / "none")}
    place = {"hub": {**entry["hub"], "revision": 40 * "0"}, "form": "mmlu"}
    both = {"categories": CATEGORIES, "sources": [place, own]}
    assert [row["question_id"] for row in question_sources.read("x", both)[0]] == ["own/1"]
    said = refused({**both, "sources": [place, missing]})
    assert "none of its 2 sources can be used" in said
    assert f"hub: Hub repo cais/mmlu: it has no commit {40 * '0'}" in said
    assert f"csv_folder: {tmp_path}/none: expected MMLU's folder" in said
