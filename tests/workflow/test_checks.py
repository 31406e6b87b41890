"""What is seen before a plan is made, and that a plan holds all that the config asks for."""

import os
import shutil
import signal
import subprocess
import time

import pandas as pd
import pytest
import yaml
from project import AFTER_CALIBRATION, call, environment, planned, snakemake

PART = "tiny/own"
pytestmark = pytest.mark.workflow


def register(study, registry, **entries):
    path = study / f"config/{registry}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | entries))


def configure(study, **settings):
    path = study / "config/config.yaml"
    config = yaml.safe_load(path.read_text()) | settings
    path.write_text(yaml.safe_dump(config, sort_keys=False))


def refused(study, *arguments):
    done = snakemake(study, "--dry-run", *arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.said
    return done.said


def test_wrong_paths_are_no_success(study):
    """Results of other paths stand: Snakemake alone has nothing to do then."""
    register(study, "models", tiny={"folder": "tinny", "licence": "none"})
    register(study, "questions", own={"file": "/nope.csv"}, more={"file": "own.csv"})
    configure(study, questions=["own", "more"], prompt="nothere.j2")
    said = refused(study)
    for fault in (
        "models: tiny: tinny: there is no such folder",
        "questions: own: /nope.csv: there is no such file",
        "prompt: nothere.j2: there is no such file",
    ):
        assert said.count(fault) == 1
    assert "more" not in said


def test_a_set_that_never_ran_is_planned(study):
    register(study, "questions", more={"file": "own.csv"})
    configure(study, questions=["own", "more"])
    plan = planned(study)
    assert plan["fetch_questions"] == plan["steer_prompts"] // 2 == 1
    # the claims of a study share one level
    assert plan["evaluate_steering"] == plan["render_report"] == 2
    assert "fetch_model" not in plan


@pytest.mark.parametrize(
    ("path", "rule"),
    [
        ("resources/models/tiny/manifest.json", "fetch_model"),
        ("resources/questions/own.rejected.csv", "fetch_questions"),
        (f"results/embedded/extract/{PART}/residuals-1.safetensors", "extract_residuals"),
        (f"results/embedded/lens/{PART}/tuned.parquet", "read_lens"),
        (f"metrics/embedded/{PART}.json", "measure_calibration"),
        (f"results/embedded/ablation/{PART}/neurons.parquet", "ablate_neurons"),
        (f"results/embedded/steering/{PART}/logits-0.safetensors", "steer_prompts"),
        ("reports/rendered/embedded/tiny/figures/own/cosines.pdf", "draw_figures"),
        ("reports/rendered/embedded/tiny/own.ipynb", "render_report"),
        ("reports/rendered/embedded/atlas.csv", "render_atlas"),
        ("reports/rendered/embedded/workflow.pdf", "draw_workflow"),
    ],
)
def test_a_deleted_result_is_made_again(study, path, rule):
    (study / path).unlink()
    assert planned(study)[rule] == 1


def test_a_stage_alone_makes_again_what_is_missing_of_it(study):
    (study / f"metrics/embedded/{PART}.json").unlink()
    assert planned(study, "lens") == AFTER_CALIBRATION


def test_a_corrected_source_is_read_again(study):
    """In every form, alone and among several; the finished study has one of each kind at first."""
    source, sets = study / "own.csv", study / "mmlu/test"
    sets.mkdir(parents=True)
    rows = pd.read_csv(source)
    cells = rows[["question", *"ABCD", "answer"]]
    cells.to_csv(sets / "s_test.csv", header=False, index=False)
    shutil.copy(source, study / "listed.csv")
    hub = {"hub": {"repo": "o/n", "revision": 40 * "0", "split": "test"}, "form": "mmlu"}
    register(
        study,
        "questions",
        folder={"csv_folder": "mmlu", "categories": {"c": ["s"]}},
        listed={"sources": [{"file": "listed.csv"}, hub]},
    )
    configure(study, questions=["own", "folder", "listed"])
    done = snakemake(study, "fetch")
    assert done.returncode == 0, done.said
    assert not planned(study, "fetch")
    for changed, rule in (
        (source, "fetch_questions"),
        (sets / "s_test.csv", "fetch_questions"),
        (study / "listed.csv", "fetch_questions"),
        (study / "tiny/generation_config.json", "fetch_model"),
    ):
        before = changed.read_bytes()
        changed.write_bytes(before + b"\n")
        assert planned(study, "fetch") == {rule: 1, "fetch": 1}, changed
        changed.write_bytes(before)
        assert not planned(study, "fetch")
    shutil.copy(sets / "s_test.csv", sets / "t_test.csv")
    assert planned(study, "fetch") == {"fetch_questions": 1, "fetch": 1}


def test_a_retrained_model_is_studied_anew(study):
    from safetensors.torch import load_file, save_file

    path = study / "tiny/model.safetensors"
    old = (study / "resources/models/tiny/manifest.json").read_text()
    tensors = load_file(path)
    tensors["model.norm.weight"] *= 2
    save_file(tensors, path, metadata={"format": "pt"})
    assert planned(study)["extract_residuals"] == 2
    done = snakemake(study, "fetch")
    assert done.returncode == 0, done.said
    assert (study / "resources/models/tiny/manifest.json").read_text() != old
    assert (study / "resources/models/tiny/model.safetensors").read_bytes() == path.read_bytes()


def test_results_outlive_the_folder_of_their_model(study):
    shutil.rmtree(study / "tiny")
    assert not planned(study)
    # what was made from another place proves nothing for this one
    register(study, "models", tiny={"folder": "tinny", "licence": "none"})
    assert "tinny: there is no such folder" in refused(study)


def status(study):
    return call(study, "dvc", "status").said


def test_dvc_sees_a_corrected_source_and_template(study):
    (study / "mine.j2").write_text("{{ question }}\nAnswer:")
    assert "up to date" in status(study)
    for path in ("own.csv", "tiny/config.json"):
        before = (study / path).read_bytes()
        (study / path).write_bytes(before + b"\n")
        assert f"modified:           {path.split('/')[0]}" in status(study)
        (study / path).write_bytes(before)
    configure(study, prompt="mine.j2")
    done = call(study, "dvc", "repro", "extract")
    assert done.returncode != 0
    assert "dvc.yaml does not list mine.j2" in done.said
    assert "python -m layercal.dvc && dvc repro" in done.said
    assert call(study, "python", "-m", "layercal.dvc").returncode == 0
    done = call(study, "dvc", "repro", "extract")
    assert done.returncode == 0, done.said
    (study / "mine.j2").write_text("{{ question }}\nThe answer:")
    assert "modified:           mine.j2" in status(study)


def test_dvc_in_a_clone_without_the_folder_of_the_model(study):
    shutil.rmtree(study / "tiny")
    assert "deleted:            tiny" in status(study)
    assert call(study, "python", "-m", "layercal.dvc").returncode == 0
    assert "up to date" in status(study)


def test_slips_are_said_in_one_line(study):
    shutil.copy(study / "config/config.yaml", study / "mine.yaml")
    phase = f"results/embedded/lens/{PART}/phase.json"
    for target in ("lens", phase):
        done = snakemake(study, "-n", "--configfile", "mine.yaml", target)
        assert done.returncode == 1
        (said,) = (line for line in done.said.splitlines() if not line.startswith("Using "))
        assert said.endswith(f"snakemake {target} --configfile mine.yaml")
    (study / "mine.yaml").write_text("seed: 1\nfolds: 4\nseed: 2\n")
    said = refused(study, "--configfile", "mine.yaml")
    assert "mine.yaml, line 3: 'seed' stands twice, first in line 1" in said
    with (study / "config/models.yaml").open("a") as registry:
        registry.write("tiny: {folder: other, licence: none}\n")
    assert "config/models.yaml, line " in (said := refused(study))
    assert "'tiny' stands twice" in said
    (study / "config/config.yaml").write_text("models: [tiny\nseed: 1\n")
    assert "config/config.yaml, line 2: " in refused(study)


def test_numbers_inside_of_an_override(study):
    again = planned(study, "lens", "--config", "study=other", "phase={tolerance: 0.05}")
    assert again["measure_calibration"] == 1
    assert "phase.tolerance: 0.05, its own: 0.02" in refused(
        study, "lens", "--config", "phase={tolerance: 0.05}"
    )
    assert "phase.tolerance: found 'x'; expected number" in refused(
        study, "lens", "--config", "phase={tolerance: x}"
    )


def test_home_in_paths(study, tmp_path):
    shutil.move(study / "own.csv", tmp_path / "own.csv")
    register(study, "questions", own={"file": "~/own.csv"})
    done = call(study, "snakemake", "--dry-run", "resources/questions/own.parquet", HOME=tmp_path)
    assert done.returncode == 0, done.said
    assert "fetch_questions" in done.said


@pytest.mark.parametrize("moment", ["Building DAG", "Extracting residuals"])
def test_an_interrupt_is_one_line(study, moment):
    (study / f"results/embedded/extract/{PART}/residuals-1.safetensors").unlink()
    log = study / f"logs/embedded/extract/{PART}/residuals-1.log"
    log.unlink(missing_ok=True)
    run = subprocess.Popen(
        ["snakemake", "extract"],
        cwd=study,
        env=environment(study),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in run.stdout:
        if moment in line:
            break
    while moment != "Building DAG" and not log.exists():
        time.sleep(0.05)  # while Python itself starts, it says where it was interrupted
    os.killpg(run.pid, signal.SIGINT)
    said = [line for line in run.stdout.read().splitlines() if line]
    assert run.wait() != 0
    assert [line for line in said if not line.startswith("Reason: ")] == [
        "interrupted: what is finished is kept; the same command goes on from there"
    ]
    assert not planned(study, "extract").keys() - {"extract", "extract_residuals"}
