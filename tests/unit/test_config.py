"""The config is checked before anything runs; the rules name all the code they depend on."""

import ast
import copy
import datetime
import os
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from conftest import ROOT

from layercal import InputError
from layercal import config as config_module
from layercal.config import check, check_names, check_registry, key_tables
from layercal.report import figure_names
from layercal.report.figures import REGISTRY
from layercal.sources import question_sources
from layercal.steering import claims

SOURCE = ROOT / "src/layercal"
COMMON = ROOT / "workflow/rules/common.smk"
RESOURCES = ROOT / "workflow/rules/resources.smk"
RULES = sorted(set((ROOT / "workflow/rules").glob("*.smk")) - {COMMON, RESOURCES})


def read(path):
    return yaml.safe_load((ROOT / path).read_text())


CONFIG = read("config/config.yaml")
FIXED = [
    read(path)
    for path in (
        "workflow/schemas/config.schema.yaml",
        "config/models.yaml",
        "config/questions.yaml",
    )
]


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


def test_paper_config_is_the_embedded_one_on_the_papers_models():
    schema, models, questions = FIXED
    paper = read("config/paper.yaml")
    check(paper, schema, models, questions)
    assert len(paper["models"]) == 4
    assert paper["directions"].pop("transfer")["models"] == paper["models"][1:]
    assert not CONFIG["directions"]["transfer"]["models"]
    paper["directions"] |= {key: CONFIG["directions"][key] for key in ("transfer", "random")}
    own = {"study", "models", "questions", "extract"}
    assert {key for key in CONFIG if paper[key] != CONFIG[key]} == own
    assert {**paper["extract"], "shards": 4} == CONFIG["extract"]


@pytest.mark.parametrize("name", ["config", "paper", "languages"])
def test_there_are_controls_enough_for_the_claims_of_a_study(name):
    """A rank among R is never below 1 / (1 + R), whatever a direction does."""
    config = read(f"config/{name}.yaml")
    modes = config["steering"].get("modes", CONFIG["steering"]["modes"])
    family = claims.Family(len(config["models"]) * len(config["questions"]), len(modes))
    level = family.level_of("it does so more than matched random directions")
    assert 1 / (1 + config["directions"]["random"]) <= level


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
    del config["phase"]
    with pytest.raises(InputError) as error:
        check(config, *FIXED)
    for part in ("seed: -1", "prompt: 'x'", "'phase' is a required property"):
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
    config = config_module.as_meant(with_value(path, text), FIXED[0])
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
    config = config_module.as_meant(with_value(path, text), FIXED[0])
    with pytest.raises(InputError) as error:
        check(config, *FIXED)
    assert message in str(error.value)


def test_text_stays_where_the_schema_takes_text(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = {**CONFIG, "models": ["007"], "prompt": "~/mine.j2", "extract": None}
    meant = config_module.as_meant(config, FIXED[0])
    assert meant == {**config, "prompt": "/home/me/mine.j2"}


MODELS_SCHEMA = read("workflow/schemas/models.schema.yaml")
HUB = {"hub": {"repo": "org/name", "revision": 40 * "0"}}
WHEELS = {"wheels": ["a"], "member": "*", "file": "a.gguf", "size": 1, "sha256": 64 * "0"}


def test_registered_models_are_valid():
    check_registry("config/models.yaml", FIXED[1], MODELS_SCHEMA)
    check_registry("", {"all": {"licence": "", "sources": [HUB, WHEELS]}}, MODELS_SCHEMA)


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
        check_registry("models.yaml", {"m": entry, "fine": {"licence": "", **HUB}}, MODELS_SCHEMA)
    assert str(error.value).startswith("models.yaml cannot be used:\n  m: ")
    assert str(error.value).count(message) == 1
    assert "fine" not in str(error.value)


def test_what_a_limit_leaves_is_enough_for_all_that_comes():
    """As many as each asks for are enough; null asks nothing, since the sets may be larger."""
    config = {**CONFIG, "folds": 6, "calibration": {**CONFIG["calibration"], "min_group": 7}}
    config["extract"] = {**CONFIG["extract"], "shards": 8}
    for limit, short in ((None, 0), (8, 0), (7, 1), (6, 2), (5, 3)):
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
    check_names(models=[*FIXED[1], "7b", "a", "a" * 100, "v1.5", "x.gguf"], questions=FIXED[2])
    check_names(models=["same"], questions=["same"], study=["same"])


QUESTIONS_SCHEMA = read("workflow/schemas/questions.schema.yaml")
DATASET = {"hub": {"repo": "org/name", "revision": 40 * "0", "split": "test"}}


def test_registered_questions_are_valid():
    check_registry("config/questions.yaml", FIXED[2], QUESTIONS_SCHEMA)
    check_registry("", {"own": {"file": "/q.csv"}}, QUESTIONS_SCHEMA)
    sources = [{**DATASET, "form": "mmlu"}, {"csv_folder": "/mmlu"}]
    check_registry("", {"both": {"sources": sources, "categories": {}}}, QUESTIONS_SCHEMA)


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
        check_registry("questions.yaml", {"q": entry}, QUESTIONS_SCHEMA)
    assert message in str(error.value)


def test_forms_are_those_of_the_code():
    kinds = QUESTIONS_SCHEMA["dependentSchemas"]
    for kind, forms in (("wheel", question_sources.WHEEL_FORMS), ("hub", question_sources.FORMS)):
        assert kinds[kind]["properties"]["form"]["enum"] == sorted(forms)
    kinds = [option["required"][0] for option in QUESTIONS_SCHEMA["oneOf"]]
    assert kinds == list(question_sources.READERS)


def test_key_tables_are_those_of_the_schemas():
    """Run python -m layercal.config > config/README.md after a change of a schema or default."""
    assert (ROOT / "config/README.md").read_text() == key_tables(ROOT)
    for key in ("prompt", "steering.alphas", "hub.revision", "csv_folder"):
        assert f"| `{key}` |" in key_tables(ROOT)


def imports(module):
    """Modules of the package that a module imports itself, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse((SOURCE / f"{module}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("layercal"):
            inner = node.module.removeprefix("layercal").lstrip(".").replace(".", "/")
            found |= {f"{inner}/{alias.name}".lstrip("/") for alias in node.names} | {inner}
    packages = {"model": "model/__init__", "report/figures": "report/figures/__init__"}
    found = {packages.get(name, name) for name in found}
    return {name for name in found if name and (SOURCE / f"{name}.py").exists()}


def needed(module):
    """A module and, transitively, all it imports."""
    found, ahead = set(), {module}
    while ahead:
        name = ahead.pop()
        found.add(name)
        ahead |= imports(name) - found
    return found


TEMPLATES = "src/layercal/report/templates"


def rules():
    """(file, rule, stage module, modules listed as code) of every rule that runs a stage."""
    for path in RULES:
        for block in re.split(r"\n(?=rule )", path.read_text())[1:]:
            stage = re.search(r"-m layercal\.stages\.(\w+)", block)
            if stage:
                listed = re.search(r"code=expand\([^[]*\[([^]]*)\]", block)[1]
                yield path, block.split(":")[0], stage[1], set(re.findall(r'"([^"]+)"', listed))


FOUND = list(rules())


@pytest.mark.parametrize(("path", "rule", "stage", "listed"), FOUND, ids=[row[1] for row in FOUND])
def test_rules_list_all_code_they_run(path, rule, stage, listed):
    """Snakemake sees no imports: a module missing here would leave stale results."""
    expected = needed(f"stages/{stage}")
    block = path.read_text().split(f"{rule}:")[1].split("\nrule ")[0]
    if "--device" in block:  # the model is loaded by what these stages share
        expected |= needed("model/__init__")
    if "reports/notebooks" in block:
        expected |= needed("report/notebook")
    assert listed == expected


def test_every_stage_has_a_rule():
    stages = {path.stem for path in (SOURCE / "stages").glob("*.py")} - {"__init__"}
    assert stages == {stage for _, _, stage, _ in FOUND}


@pytest.mark.parametrize("path", RULES, ids=[path.stem for path in RULES])
def test_dvc_mirrors_the_rules(path):
    stage, text = read("dvc.yaml")["stages"][path.stem], path.read_text()
    code = {f"src/layercal/{name}.py" for row in FOUND if row[0] == path for name in row[3]}
    assert {dep for dep in stage["deps"] if dep.startswith("src/")} - {TEMPLATES} == code
    assert (TEMPLATES in text) == (TEMPLATES in stage["deps"])
    assert f"workflow/rules/{path.name}" in stage["deps"]
    assert stage["cmd"] == f"snakemake {path.stem}"
    functions = re.findall(r"def (\w+).*?(?=\ndef |\Z)", COMMON.read_text(), re.S)
    if any(name in text for name in functions):
        assert "workflow/rules/common.smk" in stage["deps"]
    used = set(re.findall(r'config\["(\w+)"\]', text))
    if "SHARDS" in path.read_text():
        used.add("extract")
    listed = next((set(p["config/config.yaml"]) for p in stage["params"]), set())
    assert used <= listed


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
