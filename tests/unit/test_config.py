"""The config is checked before anything runs; the rules name the code they run."""

import copy
import datetime
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import yaml
from conftest import ROOT

from layercal import InputError, keys, study
from layercal.checks import as_meant, check, check_names, check_registry
from layercal.code import parameters, settings, stages
from layercal.config import TEMPLATES, Config, Estimator, Mode, Model, QuestionSet
from layercal.prompts import templates
from layercal.report import figure_names
from layercal.report.figures import REGISTRY
from layercal.sources import question_sources, weights
from layercal.steering import claims, directions, interventions

RESOURCES = ROOT / "workflow/rules/resources.smk"
RULES = sorted((ROOT / "workflow/rules").glob("*.smk"))


def read(path):
    return yaml.safe_load((ROOT / path).read_text())


CONFIG = read("config/config.yaml")
STUDYS_OWN = ("study", "models", "questions")
FIXED = [read("config/models.yaml"), read("config/questions.yaml")]


@pytest.fixture
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)


def with_value(path, value):
    """The embedded config with one value changed."""
    config = copy.deepcopy(CONFIG)
    *parents, key = path.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    place[key] = value
    return config


def test_embedded_config_is_valid():
    check(CONFIG, *FIXED)


@pytest.mark.parametrize("name", ["paper", "languages", "mmlu", "ladder", "quantizations", "pair"])
def test_a_config_file_says_only_what_differs(name, in_project):
    said = read(f"config/{name}.yaml")
    config = study.own_config([f"config/{name}.yaml"])
    check(config, *FIXED)

    def same(here, there):
        for key, value in here.items():
            if isinstance(value, dict):
                yield from same(value, there[key])
            elif value == there[key]:
                yield key

    assert not list(same(said, CONFIG))


def test_config_yaml_says_every_key_and_its_default():
    """DVC's stages point at its keys; it cannot see a default change that it does not say."""
    assert study.with_defaults({key: CONFIG[key] for key in STUDYS_OWN}) == CONFIG
    required = {name for name, field in Config.model_fields.items() if field.is_required()}
    assert required == set(STUDYS_OWN)


def test_what_no_file_says_has_its_default():
    config = {key: CONFIG[key] for key in STUDYS_OWN} | {"phase": {}, "steering": {"chunk": 4}}
    filled = study.with_defaults(config)
    assert filled == CONFIG | {"steering": CONFIG["steering"] | {"chunk": 4}}
    check(filled, *FIXED)
    filled["steering"]["alphas"].append(9)
    assert 9 not in study.with_defaults(config)["steering"]["alphas"]


def test_paper_config_is_the_embedded_one_on_the_papers_models(in_project):
    paper = study.own_config(["config/paper.yaml"])
    check(paper, *FIXED)
    assert len(paper["models"]) == 4
    assert paper["directions"].pop("transfer")["models"] == paper["models"][1:]
    assert not CONFIG["directions"]["transfer"]["models"]
    paper["directions"] |= {key: CONFIG["directions"][key] for key in ("transfer", "random")}
    own = {"study", "models", "questions", "extract"}
    assert {key for key in CONFIG if paper[key] != CONFIG[key]} == own
    assert {**paper["extract"], "shards": 4} == CONFIG["extract"]


@pytest.mark.parametrize("name", ["config", "paper", "languages", "mmlu", "pair"])
def test_there_are_controls_enough_for_the_claims_of_a_study(name, in_project):
    """A rank among R is never below 1 / (1 + R), whatever a direction does."""
    config = study.own_config([f"config/{name}.yaml"])
    family = claims.Family(study.branches(config, FIXED[1]))
    level = family.level_of(claims.BEYOND_CONTROLS)
    assert 1 / (1 + config["directions"]["random"]) <= level


def test_the_family_of_a_study_counts_the_modes_of_each_set(in_project):
    config = study.own_config([])
    sets = {"plain": {}, "large": {"modes": ["lens"]}}
    config |= {"models": ["a", "b", "c"], "questions": ["plain", "large"]}
    assert study.branches(config, sets) == 3 * (2 + 1)
    assert study.branches({**config, "questions": ["large"]}, sets) == 3


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("models", ["smollm-135m"], "unknown model 'smollm-135m' (did you mean 'smollm2-135m'?)"),
        ("questions", ["zzz"], "unknown question set 'zzz' (known: arc-challenge, arc-easy, "),
        ("models", [], "models: "),
        ("sed", 1, "unknown key 'sed' (did you mean 'seed'?)"),
        ("steering.alpha", [1], "unknown key 'steering.alpha' (did you mean 'alphas'?)"),
        ("steering.alphas", [0, "one"], "steering.alphas[1]: found 'one'; expected number"),
        ("steering.alphas", [1, 2], "steering.alphas: found [1, 2]; it must hold 0"),
        ("steering.modes", ["network"], "steering.modes[0]: 'network' is not one of"),
        ("extract.shards", 0, "extract.shards: 0 is less than the minimum of 1"),
        ("extract.dtype", "float16", "extract.dtype: 'float16' is not one of"),
        ("limit", "all", "limit: found 'all'; expected integer or null"),
        ("limit", 20, "limit: 20 questions are too few for calibration.min_group: 30; raise"),
        ("limit", 5, "limit: 5 questions are too few for calibration.min_group: 30"),
        ("study", 2026, "study: found 2026; expected string"),
        ("extract", None, "extract: found None; expected object"),
        ("folds", 2, "folds: 2 is less than the minimum of 3"),
        ("prompt", "mine.txt", "prompt: 'mine.txt' does not match"),
    ],
)
def test_bad_config_is_named(path, value, message):
    config = with_value(path, value)
    with pytest.raises(InputError) as error:
        check(config, *FIXED)
    assert message in str(error.value)


def test_all_faults_are_named_at_once():
    config = {**CONFIG, "seed": -1, "prompt": "x"}
    del config["models"]
    with pytest.raises(InputError) as error:
        check(config, *FIXED)
    for part in ("seed: -1", "prompt: 'x'", "'models' is a required property"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("path", "text", "meant"),
    [
        ("phase.tolerance", "0.05", 0.05),
        ("phase.tolerance", "1e-3", 0.001),
        ("extract.shards", "2", 2),
        ("limit", "null", None),
        ("limit", "40", 40),
        ("directions.transfer.categories", "False", False),
        ("directions.transfer.categories", "true", True),
        ("steering.alphas", ["0", "-1", "0.5"], [0, -1, 0.5]),
        ("calibration.n_bins", ["10"], [10]),
    ],
)
def test_text_for_a_number_is_taken_as_meant(path, text, meant):
    """Snakemake hands on what stands inside of --config 'phase={tolerance: 0.05}' as text."""
    config = as_meant(with_value(path, text))
    assert config == with_value(path, meant)
    check(config, *FIXED)


@pytest.mark.parametrize(
    ("path", "text", "message"),
    [
        ("phase.tolerance", "small", "phase.tolerance: found 'small'; expected number"),
        ("extract.shards", "0.5", "extract.shards: found '0.5'; expected integer"),
        ("extract.shards", "true", "extract.shards: found 'true'; expected integer"),
        ("phase.tolerance", "nan", "phase.tolerance: found 'nan'; expected number"),
    ],
)
def test_text_that_is_no_such_number_is_named_as_it_was_given(path, text, message):
    config = as_meant(with_value(path, text))
    with pytest.raises(InputError) as error:
        check(config, *FIXED)
    assert message in str(error.value)


def test_text_stays_where_the_schema_takes_text(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = {**CONFIG, "models": ["007"], "prompt": "~/mine.j2", "extract": None}
    meant = as_meant(config)
    assert meant == {**config, "prompt": "/home/me/mine.j2"}


HUB = {"hub": {"repo": "org/name", "revision": 40 * "0"}}
WHEELS = {"wheels": ["a"], "member": "*", "file": "a.gguf", "size": 1, "sha256": 64 * "0"}


def test_registered_models_are_valid():
    check_registry("config/models.yaml", FIXED[0], Model)
    check_registry("", {"all": {"licence": "", "sources": [HUB, WHEELS]}}, Model)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"folder": "/m", "license": "MIT"}, "m: unknown key 'license' (did you mean 'licence'?)"),
        ({"folder": "/m"}, "m: 'licence' is a required property"),
        ({"licence": ""}, "m: found no source; expected one of wheels, hub, folder, gguf"),
        ({"licence": "", "gguf": "/g", **HUB}, "m: found hub and gguf; expected one of wheels"),
        (
            {"licence": "", "wheels": ["a"], "member": "*"},
            "m: 'sha256' is a dependency of 'wheels'",
        ),
        ({"licence": "", "hub": {"repo": "org/name"}}, "m: hub: 'revision' is a required property"),
        ({"licence": "", "hub": {"repo": "x", "revision": "y"}}, "m: hub.repo: 'x' does not match"),
        ({"licence": "", "gguf": "/g", "sha256": "f00"}, "m: sha256: 'f00' does not match"),
        (
            {"licence": "", "sources": []},
            "m: expected the keys of one source, or a list of sources",
        ),
        ({"licence": "", "sources": [HUB, {}]}, "m: sources[1]: found no source"),
        ({"licence": "", "sources": [HUB], "folder": "/m"}, "m: found hub and folder; expected"),
        ({"licence": 1, "sources": [HUB, WHEELS]}, "m: licence: found 1; expected string"),
        ("a", "m: expected the keys of one source"),
    ],
)
def test_bad_registry_entry_is_named_once(entry, message):
    with pytest.raises(InputError) as error:
        check_registry("models.yaml", {"m": entry, "fine": {"licence": "", **HUB}}, Model)
    assert str(error.value).startswith("models.yaml cannot be used:\n  m: ")
    assert str(error.value).count(message) == 1
    assert "fine" not in str(error.value)


def test_what_a_limit_leaves_is_enough_for_all_that_comes():
    """As many as each asks for are enough; null asks nothing, since the sets may be larger."""
    config = {**CONFIG, "folds": 6, "calibration": {**CONFIG["calibration"], "min_group": 7}}
    for limit, short in ((None, 0), (7, 0), (6, 1), (5, 2)):
        if not short:
            check({**config, "limit": limit}, *FIXED)
            continue
        with pytest.raises(InputError) as error:
            check({**config, "limit": limit}, *FIXED)
        assert str(error.value).count("too few for") == short


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("org/model", "holds '/'"),
        ("c++", "holds '+'"),
        ("my model", "holds ' '"),
        ("a#b%20?", "holds '#%?'"),
        ("modèle", "holds 'è'"),
        ("a\n", r"holds '\n'"),
        ("", "does not begin with a letter or digit"),
        ("..", "does not begin"),
        (".hidden", "does not begin"),
        ("-flag", "does not begin"),
        ("a" * 101, "has 101 characters"),
        ("atlas.html", "ends as a file does, in .html"),
        (7, "is no text but a number to YAML"),
        (1.5, "is no text but a number"),
        (False, "is no text but yes or no"),
        (None, "is no text but nothing"),
        (datetime.date(2024, 1, 31), "is no text but a date"),
        ("007", "is a number to YAML where it is not quoted"),
        ("1.5", "is a number"),
        ("1e5", "is a number"),
        ("1_000", "is a number"),
        ("no", "is yes or no"),
        ("null", "is nothing"),
        ("2024-01-31", "is a date"),
    ],
)
def test_names_that_cannot_be_used(name, fault):
    with pytest.raises(InputError) as error:
        check_names(models=["fine", name], study=["fine"])
    said = str(error.value).splitlines()
    assert said[0] == "these names cannot be used:"
    assert said[1].startswith(f"  models: {name!r} {fault}")
    assert len(said) == 3 and said[2].startswith("a name is of letters a to z")


def test_all_bad_names_are_said_at_once():
    with pytest.raises(InputError) as error:
        check_names(models=["a b", "Llama", "llama"], questions=["org/set"], study=[2026])
    said = str(error.value)
    for part in ("models: 'a b'", "questions: 'org/set'", "study: 2026"):
        assert part in said
    assert "models: 'Llama' and 'llama' are one name to some disks" in said


def test_names_that_can_be_used():
    check_names(models=[*FIXED[0], "7b", "a", "a" * 100, "v1.5", "x.gguf"], questions=FIXED[1])
    check_names(models=["same"], questions=["same"], study=["same"])


DATASET = {"hub": {"repo": "org/name", "revision": 40 * "0", "split": "test"}}


def test_registered_questions_are_valid():
    check_registry("config/questions.yaml", FIXED[1], QuestionSet)
    check_registry("", {"own": {"file": "/q.csv"}}, QuestionSet)
    sources = [{**DATASET, "form": "mmlu"}, {"csv_folder": "/mmlu"}]
    check_registry("", {"both": {"sources": sources, "categories": {}}}, QuestionSet)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"file": "/q.csv", "forn": 1}, "q: unknown key 'forn' (did you mean 'form'?)"),
        ({"form": "mmlu"}, "q: found no source; expected one of wheel, hub, csv_folder, file"),
        (DATASET, "q: 'form' is a required property"),
        ({**DATASET, "form": "flan-cot"}, "q: form: 'flan-cot' is not one of ['labelled', 'mmlu'"),
        (
            {"hub": {"repo": "a/b", "split": "x"}, "form": "mmlu"},
            "q: hub: 'revision' is a required",
        ),
        ({"csv_folder": "/m"}, "q: 'categories' is a required property"),
        (
            {"wheel": "", "members": "", "categories": {}, "form": "translated"},
            "q: 'order' is a required property",
        ),
    ],
)
def test_bad_question_set_is_named(entry, message):
    with pytest.raises(InputError) as error:
        check_registry("questions.yaml", {"q": entry}, QuestionSet)
    assert message in str(error.value)


def test_names_are_those_of_the_code():
    """They stand in the config's models too, since a plan must not wait for torch."""
    assert set(get_args(Estimator)) == {*directions.ESTIMATORS, "phase-pca"}
    assert list(get_args(Mode)) == list(interventions.MODES)
    assert list(TEMPLATES) == [*templates.TEMPLATES, "chat"]
    assert QuestionSet.FORMS["wheel"] == sorted(question_sources.WHEEL_FORMS)
    assert QuestionSet.FORMS["hub"] == sorted(question_sources.FORMS)
    assert list(QuestionSet.SOURCES) == list(question_sources.READERS)
    assert list(Model.SOURCES) == list(weights.KINDS)


def test_a_plan_needs_no_torch():
    code = "import sys; from layercal import checks, study; from layercal.sources import local; "
    code += "sys.exit('torch' in sys.modules or 'jsonschema' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_made_files_are_those_of_the_models():
    """Run python -m layercal.keys after a change of a key."""
    assert (ROOT / "config/README.md").read_text() == keys.tables()
    assert (ROOT / "config/config.yaml").read_text() == keys.config_yaml(CONFIG)
    for key in ("prompt", "steering.alphas", "hub.revision", "csv_folder"):
        assert f"| `{key}` |" in keys.tables()


def test_config_yaml_keeps_its_values():
    config = with_value("steering.alphas", [0, 2.5e-05, -1]) | {"prompt": "a b.j2", "limit": 40}
    config["calibration"] = {**CONFIG["calibration"], "n_bins": [12]}
    assert yaml.safe_load(keys.config_yaml(config)) == config


def rules():
    """(file, rule, stage) of every rule that runs a stage."""
    for path in RULES:
        for block in re.split(r"\n(?=rule )", path.read_text())[1:]:
            stage = re.search(r'stage\("(\w+)"\)', block)
            if stage:
                yield path, block, stage[1]


FOUND = list(rules())


@pytest.mark.parametrize(("path", "block", "stage"), FOUND, ids=[row[2] for row in FOUND])
def test_rules_depend_on_the_code_they_run(path, block, stage):
    """Snakemake sees no imports: a module missing here would leave stale results."""
    assert block.startswith(f"rule {stage}:")
    listed = re.search(r" {4}params:\n(?: {8}.*\n)* {8}code=digest_of\((.*)\),", block)[1]
    assert listed.startswith(f'"{stage}"')
    assert ("beside=[NOTEBOOK]" in listed) == ("notebook=NOTEBOOK" in block)


def test_every_stage_has_a_rule():
    assert stages() == sorted(stage for _, _, stage in FOUND)


@pytest.mark.parametrize(("path", "block", "stage"), FOUND, ids=[row[2] for row in FOUND])
def test_rules_give_what_their_stages_ask_for_and_nothing_else(path, block, stage):
    """By name; there may be more inputs, files that are read without being named, and the code."""
    sections = dict(re.findall(r"^    (\w+):\n((?: {8}.*\n)+)", block, re.M))
    given = {
        section: set(re.findall(r"^ {8}(\w+)=", sections.get(section, ""), re.M))
        for section in ("input", "output", "params")
    }
    if f'**settings("{stage}", config)' in block:
        given["params"] |= settings(stage, CONFIG).keys()
    asked = {"Path": set(), "Output": set(), "params": set()}
    for each in parameters(stage):
        if each.name not in ("threads", "model", "questions", "shard") or each.kind == "Path":
            asked.get(each.kind, asked["params"]).add(each.name)
    assert given["output"] == asked["Output"]
    assert given["params"] - {"code"} == asked["params"]
    unnamed = {"own", "template", "atlas", "rules", "html", "templates", "figures", "workflow"}
    assert given["input"] - asked["Path"] <= unnamed
    assert asked["Path"] <= given["input"]


def test_a_stage_gets_keys_by_their_names_from_any_section():
    """Of a list that it takes one value of, the first: the primary one."""
    config = with_value("calibration.n_bins", [7, 9]) | {"seed": 3}
    asked = settings("measure_calibration", config)
    assert asked["n_bins"] == [7, 9] and asked["seed"] == 3
    assert asked["tolerance"] == config["phase"]["tolerance"]
    assert settings("measure_recalibration", config)["n_bins"] == 7
    assert not {"phase", "prompts", "threads"} & asked.keys()  # a file, too, may be named as a key


def test_no_key_has_the_name_of_another():
    """A stage asks for them without their sections."""
    sections = {key: value for key, value in CONFIG.items() if isinstance(value, dict)}
    names = [*CONFIG, *(name for keys in sections.values() for name in keys)]
    assert len(set(names)) == len(names)


def test_dvc_hashes_the_registries_that_a_stage_reads():
    """As files: params would copy every entry into dvc.lock, and could not name one with a dot."""
    stages = read("dvc.yaml")["stages"]
    registries = {"config/models.yaml", "config/questions.yaml"}
    reading = {name: registries & {*stage["deps"]} for name, stage in stages.items()}
    assert {name: paths for name, paths in reading.items() if paths} == {
        "fetch": registries,
        "extract": {"config/questions.yaml"},  # how a set is asked
        "steering": {"config/questions.yaml"},  # in which modes
    }
    for stage in stages.values():
        assert {path for each in stage["params"] for path in each} == {"config/config.yaml"}


def test_rules_know_every_figure():
    """They read the names off the code, which they do not import."""
    assert figure_names() == sorted(REGISTRY) and len(REGISTRY) > 10


@pytest.mark.parametrize(("device", "minutes"), [("cpu", (60, 241, 300)), ("cuda", (63, 76, 80))])
def test_jobs_ask_for_more_for_a_larger_model_and_at_each_retry(
    tmp_path, monkeypatch, device, minutes
):
    monkeypatch.chdir(tmp_path)
    rules = {"config": {"extract": {"device": device}}, "Path": Path, "os": os}
    rules["MODELS"] = {"small": {"size": 10**9}, "unknown": {}, "fetched": {"size": 10**9}}
    exec(RESOURCES.read_text(), rules)
    place = tmp_path / "resources/models/fetched"
    place.mkdir(parents=True)
    with (place / "model.safetensors").open("wb") as weights:
        weights.truncate(20 * 10**9)  # a hole: no bytes on the disk
    (tmp_path / "shard").write_bytes(bytes(10**6))
    memory, runtime = rules["mb_of_model"](4000, copies=6), rules["minutes"](60)
    for model, size, expected in zip(rules["MODELS"], (3500, 16100, 20000), minutes, strict=True):
        wildcards, shards = SimpleNamespace(model=model), ["shard", "not yet there"]
        once = 4006 + size * (1 if device == "cuda" else 2)
        assert [memory(wildcards, shards, n) for n in (1, 2)] == [once, 2 * once]
        assert runtime(wildcards, 1) == expected
        assert runtime(wildcards, 2) == pytest.approx(2 * expected, abs=1)
