"""What a config names on this disk is there, is an input, and is a dependency of DVC."""

import json

import pytest
import yaml
from conftest import ROOT

from layercal import InputError
from layercal.sources import local

HUB = {"hub": {"repo": "org/name", "revision": 40 * "0"}}
WHEELS = {"wheels": ["a"], "member": "*", "file": "a.gguf", "size": 1, "sha256": 64 * "0"}
CONFIG = {"models": ["m"], "questions": ["q"], "prompt": "hendrycks"}
CONFIG["directions"] = {"transfer": {"models": [], "questions": []}}


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A model folder, a GGUF file, questions in both forms, a template."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "model/config.json",
        "model/tokenizer.json",
        "model/model.safetensors",
        "model/notes.txt",
        "m.gguf",
        "q.csv",
        "mmlu/test/a_test.csv",
        "mmlu/test/b_test.csv",
        "mmlu/dev/a_dev.csv",
        "p.j2",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("entry", "files"),
    [
        ({"file": "q.csv"}, ["q.csv"]),
        (
            {"csv_folder": "mmlu"},
            ["mmlu/test/a_test.csv", "mmlu/test/b_test.csv", "mmlu/dev/a_dev.csv"],
        ),
        ({"csv_folder": "mmlu", "split": "dev"}, ["mmlu/dev/a_dev.csv"]),
        ({"csv_folder": "mmlu", "split": "val"}, ["mmlu"]),
        (
            {"csv_folder": "mmlu", "split": "dev", "flags": "q.csv"},
            ["mmlu/dev/a_dev.csv", "q.csv"],
        ),
        ({"sources": [HUB, {"file": "q.csv"}]}, ["q.csv"]),
        ({"sources": [{"file": "none.csv"}, HUB]}, []),
        ({"sources": [{"file": "none.csv"}, {"file": "q.csv"}]}, ["q.csv"]),
        ({"file": "none.csv"}, ["none.csv"]),
        (HUB, []),
    ],
)
def test_inputs_of_questions(entry, files):
    assert sorted(local.question_inputs(entry)) == sorted(files)


FOLDER = ["model/config.json", "model/model.safetensors", "model/tokenizer.json"]


@pytest.mark.parametrize(
    ("entry", "files"),
    [
        ({"folder": "model"}, FOLDER),
        ({"gguf": "m.gguf"}, ["m.gguf"]),
        ({"sources": [{"gguf": "m.gguf"}, HUB, {"folder": "model"}]}, ["m.gguf", *FOLDER]),
        ({"sources": [{"folder": "none"}, HUB]}, []),
        (WHEELS, []),  # their file is a name in them
    ],
)
def test_inputs_of_models(entry, files):
    assert sorted(local.model_inputs("m", entry)) == sorted(files)


def test_all_that_is_missing_is_named_at_once():
    config = {**CONFIG, "prompt": "none.j2", "models": ["m", "other"]}
    config["directions"] = {"transfer": {"models": ["third"], "questions": ["more"]}}
    models = {"m": {"folder": "none"}, "other": {"gguf": "none.gguf"}, "third": {"folder": "model"}}
    questions = {"q": {"file": "none.csv"}, "more": {"csv_folder": "none", "prompt": "no.j2"}}
    with pytest.raises(InputError) as error:
        local.check(config, models, questions)
    assert str(error.value) == "\n  ".join(
        [
            "what the config names cannot be read:",
            "models: m: none: there is no such folder",
            "models: other: none.gguf: there is no such file",
            "questions: q: none.csv: there is no such file",
            "questions: more: none: there is no such folder",
            "prompt: none.j2: there is no such file",
            "prompt: no.j2: there is no such file",
        ]
    )


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "model: expected config.json and the weights"),
        ("model.safetensors", "model: expected config.json and the weights"),
        ("tokenizer.json", "model: expected a tokenizer"),
    ],
)
def test_a_folder_that_lacks_a_part_is_named(place, missing, message):
    (place / "model" / missing).unlink()
    with pytest.raises(InputError, match=message):
        local.check(CONFIG, {"m": {"folder": "model"}}, {"q": {"file": "q.csv"}})


def test_a_folder_without_questions_is_named(place):
    for path in place.glob("mmlu/test/*"):
        path.unlink()
    with pytest.raises(InputError, match="mmlu: expected MMLU's folder"):
        local.check(CONFIG, {"m": HUB}, {"q": {"csv_folder": "mmlu"}})


def test_a_set_of_its_own_prompt_does_not_need_that_of_the_config():
    questions = {"q": {"file": "q.csv", "prompt": "p.j2"}}
    local.check({**CONFIG, "prompt": "none.j2"}, {"m": HUB}, questions)


@pytest.mark.parametrize("entry", [{"folder": "gone"}, {"sources": [{"folder": "gone"}, HUB]}])
def test_a_model_whose_manifest_stands_outlives_its_source(place, entry):
    manifest = place / "resources/models/m/manifest.json"
    manifest.parent.mkdir(parents=True)
    source = {"folder": "gone"}
    questions = {"q": {"file": "q.csv"}}
    manifest.write_text(json.dumps({"source": source}))
    local.check(CONFIG, {"m": entry}, questions)
    # Snakemake leaves what stands where an input of its rule is missing
    assert local.model_inputs("m", entry) == ["gone"]
    # but a manifest of another source proves nothing
    manifest.write_text(json.dumps({"source": {"folder": "other"}}))
    assert local.model_inputs("m", entry) == ([] if "sources" in entry else ["gone"])
    if "sources" not in entry:
        with pytest.raises(InputError, match="gone: there is no such folder"):
            local.check(CONFIG, {"m": entry}, questions)


def test_questions_do_not_outlive_their_source(place):
    manifest = place / "resources/models/q/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"source": {"file": "gone.csv"}}))
    with pytest.raises(InputError, match=r"questions: q: gone\.csv: there is no such file"):
        local.check(CONFIG, {"m": HUB}, {"q": {"file": "gone.csv"}})


def test_dvc_depends_on_what_the_config_names(place):
    config = {**CONFIG, "prompt": "p.j2", "models": ["m", "g"]}
    models = {"m": {"folder": "model"}, "g": {"sources": [{"gguf": "none"}, HUB]}}
    lacking = {"csv_folder": "mmlu", "flags": "none.csv"}
    with pytest.raises(InputError, match=r"questions: q: none\.csv: there is no such file"):
        local.check(CONFIG, {"m": HUB}, {"q": lacking})
    reviewed = {"csv_folder": "mmlu", "flags": "q.csv"}
    found = local.dependencies(config, models, {"q": reviewed})
    assert found == {"fetch": ["mmlu", "model", "q.csv"], "extract": ["p.j2"]}
    found = local.dependencies(config, models, {"q": {"csv_folder": "mmlu"}})
    assert found == {"fetch": ["mmlu", "model"], "extract": ["p.j2"]}

    dvc = place / "dvc.yaml"
    stages = {"fetch": {"deps": ["mmlu", "model", "x"]}, "extract": {"deps": ["p.j2"]}}
    dvc.write_text(yaml.safe_dump({"stages": stages}))
    local.check_dependencies(found, dvc)
    dvc.write_text(yaml.safe_dump({"stages": {"fetch": {"deps": ["x"]}, "extract": {"deps": []}}}))
    with pytest.raises(InputError, match=r"list mmlu, model, p\.j2, .* python -m layercal\.dvc"):
        local.check_dependencies(found, dvc)


def test_the_embedded_study_reads_nothing_from_this_disk():
    read = {
        name: yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())
        for name in ("config", "models", "questions")
    }
    assert local.dependencies(*read.values()) == {"fetch": [], "extract": []}
