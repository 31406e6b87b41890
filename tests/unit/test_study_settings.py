"""Whose results stand under a study's name, and which run may change them."""

import copy
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from snakemake.utils import update_config

from layercal import InputError, study

CONFIG = yaml.safe_load((ROOT / "config/config.yaml").read_text())


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """A project with the embedded study's config and files of a user's own."""
    monkeypatch.chdir(tmp_path)
    write("config/config.yaml", CONFIG)
    write("mine.yaml", {"shots": 1})
    write("other/mine.yaml", {"shots": 2})
    write("named.yaml", {"study": "quick", "limit": 40})
    return tmp_path


def write(path, config):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(yaml.safe_dump(config))


def settings(files, given):
    """The config of a run, as Snakemake and the Snakefile make it."""
    config = study.own_config(files)
    update_config(config, copy.deepcopy(given))
    return config


def refused(files=(), **given):
    """What is said of a run that is refused; None if it may go on."""
    try:
        study.check(settings(files, given), files, given)
    except InputError as error:
        return str(error)
    return None


def run(files=(), **given):
    """Go through the check and start."""
    assert refused(files, **given) is None
    study.record(settings(files, given), files, given)


@pytest.mark.parametrize(
    ("files", "name"),
    [
        ([], "embedded"),
        (["config/config.yaml"], "embedded"),
        (["mine.yaml"], "mine"),
        (["other/mine.yaml"], "mine"),
        (["named.yaml"], "quick"),
        (["named.yaml", "mine.yaml"], "quick"),
        (["config/config.yaml", "mine.yaml"], "embedded"),
    ],
)
def test_the_name(files, name):
    assert study.own_config(files)["study"] == name


def test_nested_keys_are_laid_over_one_by_one():
    write("mine.yaml", {"steering": {"chunk": 4}, "folds": 3})
    found = study.own_config(["mine.yaml"])
    expected = {"study": "mine", "folds": 3, "steering": CONFIG["steering"] | {"chunk": 4}}
    assert found == CONFIG | expected


def test_what_no_file_says_has_its_default():
    write("config/config.yaml", {key: CONFIG[key] for key in ("study", "models", "questions")})
    assert study.own_config([]) == CONFIG
    assert study.own_config(["mine.yaml"]) == CONFIG | {"study": "mine", "shots": 1}


@pytest.mark.parametrize(
    "given",
    [
        {"limit": 20},
        {"shots": 1},
        {"prompt": "joshi"},
        {"extract": {"batch_tokens": 512}},
        {"extract": {"dtype": "float32"}},
        {"study": "embedded", "limit": 20},
        {"directions": {"transfer": {"models": ["gemma3-270m"]}}},
    ],
)
def test_settings_of_the_command_line_need_a_name_of_their_own(given):
    """Whether or not the study has run here: a clone may pull its results later."""
    said = refused(**given)
    assert "not the settings of the study 'embedded' (config/config.yaml)" in said
    assert "--config study=quick " in said and "edit config/config.yaml" in said
    assert refused(**{**given, "study": "quick"}) is None


def test_what_is_said_of_them():
    said = refused(limit=20, extract={"dtype": "float32"}, models=["smollm2-135m"])
    assert "\n  limit: 20, its own: null\n" in said
    assert '\n  extract.dtype: "float32", its own: "auto"\n' in said
    assert '--config study=quick limit=20 \'extract={"dtype": "float32"}\'' in said
    assert "\n  models" not in said


@pytest.mark.parametrize("given", [{"models": ["smollm2-135m"]}, {"questions": ["mmlu"]}])
def test_a_choice_of_models_and_questions_changes_no_result(given):
    assert refused(**given) is None
    run()
    assert refused(**given) is None


def test_an_own_setting_said_again_is_no_other():
    assert refused(limit=None, seed=0, steering={"chunk": 512}) is None
    run(["mine.yaml"], shots=1)
    write("mine.yaml", {"shots": 3})
    run(["mine.yaml"])


@pytest.mark.parametrize("path", ["config/config.yaml", "mine.yaml", "named.yaml"])
def test_a_study_changes_with_its_own_file(path):
    files = [] if path == "config/config.yaml" else [path]
    run(files)
    edited = copy.deepcopy(study.own_config([path])) | {"limit": 60, "seed": 3}
    write(path, edited)
    run(files)
    run([path])


def test_two_files_of_one_name():
    run(["mine.yaml"])
    said = refused(["other/mine.yaml"])
    assert "the study 'mine' holds what mine.yaml made with other settings than other/mine" in said
    assert "\n  shots: 2 here, 1 there\n" in said
    assert "--config study=quick" in said and "delete results/mine/study.yaml" in said
    assert refused(["other/mine.yaml"], study="quick") is None
    # the same settings make the same results, whoever asks for them
    write("other/mine.yaml", {"shots": 1})
    assert refused(["other/mine.yaml"]) is None


def test_a_key_that_is_younger_than_a_study_had_its_default_there():
    run(["mine.yaml"])
    path = Path("results/mine/study.yaml")
    held = yaml.safe_load(path.read_text())
    del held["config"]["steering"]["nll_margin"], held["config"]["nullspace"]
    write(path, held)
    write("other/mine.yaml", {"shots": 1})
    assert refused(["other/mine.yaml"]) is None
    write("other/mine.yaml", {"shots": 1, "steering": {"nll_margin": 0.5}})
    said = refused(["other/mine.yaml"])
    assert "\n  steering.nll_margin: 0.5 here, 0.01 there\n" in said and "nullspace" not in said


def test_two_runs_of_one_name_on_the_command_line():
    run(study="quick", limit=20)
    run(study="quick", limit=20)
    run(study="quick", limit=20, models=["smollm2-135m"])
    said = refused(study="quick", limit=40)
    assert "holds what config/config.yaml with limit=20 made" in said
    assert "\n  limit: 40 here, 20 there\n" in said
    assert "limit: 40 here, 20 there" in refused(["named.yaml"])
    # what the study rests on is edited: it is the same study
    write("config/config.yaml", CONFIG | {"seed": 1})
    run(study="quick", limit=20)


def test_the_name_of_the_projects_own_study_is_taken():
    """In a clone too, where nothing has run."""
    write("mine.yaml", {"study": "embedded", "shots": 1})
    said = refused(["mine.yaml"])
    assert "the study 'embedded' holds what config/config.yaml made" in said
    assert "shots: 1 here, 0 there" in said
    assert "shots: 1 here" in refused(["other/mine.yaml"], study="embedded", shots=1)


def test_a_project_may_be_moved(tmp_path, monkeypatch):
    run([tmp_path / "mine.yaml"])
    write("mine.yaml", {"shots": 4})
    assert refused([tmp_path / "mine.yaml"]) is None
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    monkeypatch.chdir(moved)
    assert refused([moved / "mine.yaml"]) is None
