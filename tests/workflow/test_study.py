"""The study end to end: SmolLM2-135M, 40 questions, in a copy of the project."""

import contextlib
import json
import re

import numpy as np
import pandas as pd
import pytest
import yaml
from project import AFTER_CALIBRATION, call, copy_to, planned, snakemake
from safetensors.numpy import load_file

from layercal.metrics import calibration

MODEL, QUESTIONS = "smollm2-135m", "mmlu-dev"
PART = f"{MODEL}/{QUESTIONS}"
pytestmark = pytest.mark.workflow


@contextlib.contextmanager
def changed(folder, path, old, new):
    """Change a file of the study for a while."""
    text = (folder / path).read_text()
    assert old in text
    (folder / path).write_text(text.replace(old, new))
    try:
        yield
    finally:
        (folder / path).write_text(text)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The finished study; tests leave it as it was."""
    folder = copy_to(tmp_path_factory.mktemp("study") / "layercal")
    config = yaml.safe_load((folder / "config/config.yaml").read_text())
    config |= {"models": [MODEL], "limit": 40}
    config["extract"] |= {"shards": 3, "batch_tokens": 1024, "dtype": "float32"}
    config["calibration"]["draws"] = 200
    config["directions"]["random"] = 20
    (folder / "config/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    done = snakemake(folder)
    assert done.returncode == 0, done.said
    assert "Open reports/rendered/embedded/index.html" in done.said
    return folder


def test_artefacts(study):
    prompts = pd.read_parquet(study / f"results/embedded/extract/{PART}/prompts.parquet")
    options = pd.read_parquet(study / f"results/embedded/lens/{PART}/options.parquet")
    metrics = pd.read_parquet(study / f"results/embedded/lens/{PART}/metrics.parquet")
    phase = json.loads((study / f"results/embedded/lens/{PART}/phase.json").read_text())
    shards = [
        load_file(study / f"results/embedded/steering/{PART}/logits-{shard}.safetensors")
        for shard in range(3)
    ]
    layers = 31  # 30 blocks
    assert len(prompts) == 40
    assert len(options) == 40 * layers
    assert sum(len(shard["lens/fitted"]) for shard in shards) == 40

    # what the tables say, computed again from the logits
    final = options[options["layer"] == layers - 1]
    logits = final[[f"logit_{letter}" for letter in "ABCD"]].to_numpy(float)
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    correct = p.argmax(1) == final["answer"].to_numpy()
    assert (final["question_id"].to_numpy() == prompts["question_id"].to_numpy()).all()
    row = metrics.query(f"group == 'all' and layer == {layers - 1} and lens == 'logit'").set_index(
        ["metric", "n_bins"]
    )
    assert row.loc[("accuracy", 0), "value"] == pytest.approx(correct.mean())
    assert row.loc[("ece", 10), "value"] == pytest.approx(calibration.ece(p.max(1), correct))
    groups = {f"{kind}:{name}" for kind in ("category", "subject") for name in set(prompts[kind])}
    assert set(metrics["group"]) == {"all"} | groups
    small = metrics[metrics["n"] < 30]
    assert small["value"].isna().all() and small["reason"].str.contains("fewer than 30").all()
    assert not phase["exists"] and "No phase is claimed" in phase["reason"]

    # unsteered, the masked pass on a prefix reads what the batched extraction read
    assert all(len(shard["rows"]) for shard in shards)
    steered = np.concatenate([shard["through-network/fitted"] for shard in shards])
    steered = steered[np.argsort(np.concatenate([shard["rows"] for shard in shards]))]
    alphas = yaml.safe_load((study / "config/config.yaml").read_text())["steering"]["alphas"]
    unsteered = steered[:, 0, 0, 0, alphas.index(0)]
    np.testing.assert_allclose(unsteered, logits, atol=1e-3)


def test_reports(study):
    page = (study / f"reports/rendered/embedded/{PART}.html").read_text()
    phase = json.loads((study / f"results/embedded/lens/{PART}/phase.json").read_text())
    assert phase["reason"] in page
    assert len(re.findall(r'<img alt="[^"]+" src="data:image/png', page)) >= 12
    assert "No category holds enough questions" in page
    assert "Traceback" not in page
    index = (study / "reports/rendered/embedded/index.html").read_text()
    for link in re.findall(r'(?:href|src)="([^"]+)"', index):
        assert (study / "reports/rendered/embedded" / link).exists(), link
    notebook = (study / "reports/notebooks/report.ipynb").read_text()
    assert all(not cell.get("outputs") for cell in json.loads(notebook)["cells"])


def test_second_run_does_nothing(study):
    assert "Nothing to be done" in snakemake(study).said


def test_a_touched_file_reruns_nothing(study):
    for path in (
        "src/layercal/model/lens_model.py",
        "config/config.yaml",
        f"results/embedded/extract/{PART}/prompts.parquet",
    ):
        (study / path).touch()
    assert not planned(study)


STEERING = {"steer_prompts", "evaluate_steering"}
REPORTS = {
    "draw_figures",
    "render_report",
    "render_atlas",
    "render_index",
    "render_explorer",
    "all",
}


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("config/config.yaml", "  - 0.25\n", ""),
        ("src/layercal/steering/interventions.py", '"""Changing', '"""Now changing'),
    ],
)
def test_only_steering_depends_on_steering(study, path, old, new):
    with changed(study, path, old, new):
        assert set(planned(study)) == STEERING | REPORTS
    assert not planned(study)


def test_new_alphas_give_new_results_and_the_old_come_back(study):
    files = [*study.glob("results/**/*"), *study.glob("reports/rendered/**/*")]
    first = {path: path.read_bytes() for path in files if path.is_file()}
    residuals = study / f"results/embedded/extract/{PART}/residuals-0.safetensors"
    made = residuals.stat().st_mtime_ns
    with changed(study, "config/config.yaml", "  - 1.5\n  - 2\n  - 3\n  - 4\n  - 6\n", ""):
        done = snakemake(study)
        assert done.returncode == 0, done.said
        sweep = pd.read_parquet(study / f"results/embedded/steering/{PART}/sweep.parquet")
        assert sweep["alpha"].max() == 1
    assert snakemake(study).returncode == 0
    assert [str(path) for path in first if path.read_bytes() != first[path]] == []
    assert residuals.stat().st_mtime_ns == made


def test_targets(study):
    phase = f"results/embedded/lens/{PART}/phase.json"
    again = planned(study, "lens", "--forcerun", "measure_calibration")
    assert again == AFTER_CALIBRATION
    assert planned(study, phase, "--force") == {"measure_calibration": 1}
    both = "questions=[mmlu-dev,mmlu-dev-4shot]"
    asked = snakemake(study, "extract", "-np", "--forcerun", "tokenize_prompts", "--config", both)
    shots = re.findall(r"questions/(\S+)\.parquet --prompt hendrycks --shots (\d)", asked.said)
    assert dict(shots) == {"mmlu-dev": "0", "mmlu-dev-4shot": "4"}
    limited = planned(study, "extract", "--config", "study=quick", "limit=30")
    assert limited == {"tokenize_prompts": 1, "extract_residuals": 3, "extract": 1}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("models=[smollm-135m]", "did you mean 'smollm2-135m'?"),
        ("questions=[zzz]", "unknown question set 'zzz'"),
        ("limt=20", "unknown key 'limt' (did you mean 'limit'?)"),
    ],
)
def test_bad_config_ends_before_any_job(study, setting, message):
    done = snakemake(study, "--config", setting)
    assert done.returncode == 1
    assert message in done.said
    assert "Traceback" not in done.said


def test_bad_questions_end_before_the_model_is_touched(study):
    rows = [{"question": "One?", "A": "w", "B": "x", "C": "y", "D": "", "answer": "E"}]
    pd.DataFrame(rows).to_csv(study / "own.csv", index=False)
    with changed(study, "config/questions.yaml", "mmlu-dev:", "own: {file: own.csv}\nmmlu-dev:"):
        done = snakemake(study, "--config", "questions=[own]")
    assert done.returncode == 1
    assert "row 1: option D is empty; answer is 'E'" in done.said
    assert not (study / f"results/embedded/extract/{MODEL}/own").exists()


def test_dvc_after_snakemake_recomputes_nothing(study):
    for command in (
        "git init --quiet",
        "git add .",
        "git -c user.name=t -c user.email=t@localhost commit --quiet -m study",
    ):
        done = call(study, *command.split())
        assert done.returncode == 0, done.said
    results = [
        *study.glob("results/**/*"),
        *study.glob("resources/questions/*"),
        # DVC makes copies of weights that are linked to the cache of models; it holds the manifest
        *study.glob("resources/models/*/manifest.json"),
        *study.glob("reports/**/*"),
    ]
    before = {path: path.stat().st_mtime_ns for path in results if path.is_file()}
    assert call(study, "dvc", "status", "--quiet").returncode == 1
    done = call(study, "dvc", "repro")
    assert done.returncode == 0, done.said
    stages = yaml.safe_load((study / "dvc.yaml").read_text())["stages"]
    assert done.said.count("Nothing to be done") == len(stages)
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert call(study, "dvc", "status", "--quiet").returncode == 0
    assert "Nothing to be done" in snakemake(study).said
    locked = (study / "dvc.lock").read_text()
    assert "smollm2-135m" in locked and str(study) not in locked

    # one phase alone: what changed runs again and nothing else
    old, new = "accuracy_margin: 0.02", "accuracy_margin: 0.03"
    with changed(study, "config/config.yaml", old, new):
        done = call(study, "dvc", "repro", "steering")
        assert done.returncode == 0, done.said
        assert "Running stage 'steering'" in done.said
        assert "Running stage 'lens'" not in done.said
        summary = json.loads((study / f"results/embedded/steering/{PART}/summary.json").read_text())
        assert {row["accuracy_margin"] for row in summary["verdicts"]} == {0.03}
        assert call(study, "dvc", "status", "--quiet", "steering").returncode == 0
