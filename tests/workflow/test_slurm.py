"""The workflow on a real Slurm of one node: same bytes as without it, and what a cluster breaks."""

import os
import shutil
import time

import pytest
import slurm
from project import planned, snakemake
from test_faults import contents, start

PART = "tiny/own"
RESULTS = ("resources", "results", "metrics", "plots", "reports/rendered")
QUICK = ("--slurm-init-seconds-before-status-checks=3", "--slurm-status-command=squeue")
pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(
        bool(slurm.missing()),
        reason=f"without {', '.join(slurm.missing())}: apt-get install slurm-wlm munge, as root",
    ),
]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm.Cluster(tmp_path_factory.mktemp("slurm") / "node") as one:
        yield one


@pytest.fixture
def through_slurm(cluster):
    """What a user exports, and this cluster."""
    return {"SNAKEMAKE_PROFILE": "profiles/slurm", **cluster.variables}


def without(study, *lost):
    """Delete files of a finished study, and the logs by which their jobs show that they run."""
    for path in lost:
        (study / path).unlink()
        (study / path).with_suffix(".log").unlink(missing_ok=True)


def wait_until(condition, seconds=600):
    for _ in range(seconds * 10):
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("it never came to that")


def running(cluster, rule):
    """Slurm's number of a running job of a rule."""
    return [
        number
        for number, state, _, what in cluster.jobs()
        if state == "RUNNING" and what.startswith(f"rule_{rule}_")
    ]


def test_whole_study(cluster, through_slurm, finished, tmp_path):
    """Every rule through sbatch; those that ask for a GPU in the partition that has one."""
    kept = shutil.ignore_patterns(".git", ".dvc", ".snakemake", "dvc.lock", "logs")
    study = shutil.copytree(finished, tmp_path / "study", ignore=kept)
    for place in RESULTS:
        shutil.rmtree(study / place)
    gpu = [f"{rule}:gpu=1" for rule in ("extract_residuals", "steer_prompts")]
    done = snakemake(study, *QUICK, "--set-resources", *gpu, **through_slurm)
    assert done.returncode == 0, done.said
    assert contents(study, *RESULTS) == contents(finished, *RESULTS)
    assert not planned(study)
    jobs = cluster.jobs()
    assert {state for _, state, _, _ in jobs} == {"COMPLETED"}
    ran = {what.removeprefix("rule_").split("_wildcards")[0]: where for *_, where, what in jobs}
    on_gpu = {"extract_residuals": "gpu", "steer_prompts": "gpu"}
    assert ran == dict.fromkeys(ran, "cpu") | on_gpu
    assert {"fetch_model", "read_lens", "render_report", "render_index"} < set(ran)


def test_a_cancelled_job_is_tried_again_with_more(cluster, through_slurm, study, finished):
    without(study, f"results/embedded/extract/{PART}/residuals-1.safetensors")
    run = start(study, "extract", *QUICK, **through_slurm)
    (number,) = wait_until(lambda: running(cluster, "extract_residuals"))
    cluster.ask("scancel", number)
    (again,) = wait_until(lambda: running(cluster, "extract_residuals"))
    asked = ("squeue", "-h", "--states=all", "-o", "%m %l", "-j")
    first, second = (cluster.ask(*asked, one).split() for one in (number, again))
    assert run.wait() == 0
    assert contents(study, "results") == contents(finished, "results")
    assert (first, second) == (["4000M", "2:00:00"], ["8000M", "4:00:00"])


def test_a_controller_that_restarts_loses_nothing(cluster, through_slurm, study, finished):
    without(study, f"results/embedded/extract/{PART}/residuals-1.safetensors")
    run = start(study, "extract", *QUICK, **through_slurm)
    wait_until(lambda: running(cluster, "extract_residuals"))
    cluster.stop("slurmctld")
    time.sleep(3)
    assert run.poll() is None
    cluster.start_controller()
    assert run.wait() == 0
    assert contents(study, "results") == contents(finished, "results")


def test_several_shards_in_one_job(cluster, through_slurm, study, finished):
    without(
        study,
        *(f"results/embedded/extract/{PART}/residuals-{shard}.safetensors" for shard in (0, 1)),
    )
    before = len(cluster.jobs())
    groups = ("--groups", "extract_residuals=shards", "--group-components", "shards=2")
    cores = ("--cores", str(os.cpu_count()))
    done = snakemake(study, "extract", *cores, *groups, *QUICK, **through_slurm)
    assert done.returncode == 0, done.said
    assert contents(study, "results") == contents(finished, "results")
    assert len(cluster.jobs()) == before + 1
