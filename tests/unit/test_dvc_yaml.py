"""dvc.yaml is what the rules, the code and the config now say."""

import shutil

import pytest
import yaml
from conftest import ROOT

from layercal import code, dvc


def read(name):
    return yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())


STUDY = [read(name) for name in ("config", "models", "questions")]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The rules, the config and the notebook, in a folder of their own."""
    for name in ("workflow", "config", "reports/notebooks"):
        shutil.copytree(ROOT / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_dvc_yaml_is_up_to_date(monkeypatch):
    """Run python -m layercal.dvc after a change of rules, code or config."""
    monkeypatch.chdir(ROOT)
    assert (ROOT / "dvc.yaml").read_text() == dvc.pipeline(*STUDY)


def test_what_the_config_names_is_a_dependency_and_gone_with_it(project):
    (project / "own.csv").touch()
    (project / "p.j2").touch()
    config, models, questions = STUDY
    before = yaml.safe_load(dvc.pipeline(*STUDY))["stages"]
    questions = {**questions, "own": {"file": "own.csv"}}
    named = {**config, "questions": ["own"], "prompt": "p.j2"}
    after = yaml.safe_load(dvc.pipeline(named, models, questions))["stages"]
    added = {"fetch": {"own.csv"}, "extract": {"p.j2"}}
    for phase, stage in before.items():
        assert set(after[phase]["deps"]) == set(stage["deps"]) | added.get(phase, set())
        assert {**after[phase], "deps": 0} == {**stage, "deps": 0}


def test_a_config_key_that_a_rule_uses_is_a_parameter():
    rules = """
        a=config["seed"],
        b=expand("x", model=OWN["models"], shard=SHARDS),
        c=asked("prompt"),
        d=lambda wildcards, input: config["folds"],
        **settings("measure_calibration", config),
    """
    assert dvc.keys(rules) == [
        *("models", "prompt", "seed", "extract"),
        *("calibration", "phase"),
    ]


def test_a_stage_of_dvc_runs_the_rules_of_one_file(project):
    """Each depends on its own rules, the code of their stages, and what stages before it make."""
    stages = yaml.safe_load(dvc.pipeline(*STUDY))["stages"]
    reached = set()
    for phase, stage in stages.items():
        assert stage["cmd"] == f"snakemake {phase}"
        assert f"workflow/rules/{phase}.smk" in stage["deps"]
        made = {str(next(iter(out))) for out in stage["outs"]}
        others = {dep for dep in stage["deps"] if dep.startswith(("results/", "resources/"))}
        assert others <= reached
        reached |= made
    listed = {path for stage in stages.values() for path in stage["deps"]}
    assert set(code.code_of(*code.stages(), beside=[])) <= listed
