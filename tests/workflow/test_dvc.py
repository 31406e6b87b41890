"""DVC over Snakemake: metrics, plots, experiments, remotes, and clones that run nothing again."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from project import call, commit, planned, snakemake

PART = "tiny/own"
pytestmark = pytest.mark.workflow


def done_by(folder, *command, **variables):
    """What a command that must succeed says."""
    done = call(folder, *command, **variables)
    assert done.returncode == 0, done.said
    return done.said


def change(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def make(folder, *arguments, **variables):
    """Run make with the environment of the tests in place of one of its own."""
    ready = folder / ".venv/ready"
    ready.parent.mkdir(exist_ok=True)
    for part in ("bin", "lib", "pyvenv.cfg"):
        (ready.parent / part).unlink(missing_ok=True)
        (ready.parent / part).symlink_to(Path(sys.prefix, part))
    ready.touch()
    return call(folder, "make", *arguments, **variables)


def test_a_stage_refuses_to_run_the_rules_of_another(study):
    change(study / "src/layercal/model/lens.py", '"""', '"""Now: ')
    before = {path: path.stat().st_mtime_ns for path in (study / "results").rglob("*")}
    done = call(study, "dvc", "repro", "--single-item", "steering", "--force")
    assert done.returncode != 0
    assert "stage steering would run rules of other stages: " in done.said
    assert "read_lens (stage lens)" in done.said and "nothing was run" in done.said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    done_by(study, "dvc", "repro", "--single-item", "extract", "--force")


def test_metrics_and_plots(study):
    phase = json.loads((study / f"results/embedded/lens/{PART}/phase.json").read_text())
    shown = json.loads(done_by(study, "dvc", "metrics", "show", "--json"))
    numbers = shown[""]["data"][f"metrics/embedded/{PART}.json"]["data"]
    assert numbers["ece_final"] == phase["ece_final"]
    assert {"accuracy_final", "correction", "n"} < set(numbers)
    numbers["correction"] += 0.125
    (study / f"metrics/embedded/{PART}.json").write_text(json.dumps(numbers))
    said = done_by(study, "dvc", "metrics", "diff")
    assert re.search(rf"metrics/embedded/{PART}\.json +correction .* 0\.125\n", said)
    page = Path(done_by(study, "dvc", "plots", "show").strip().splitlines()[-1][len("file://") :])
    drawn = page.read_text()
    for curve in ("accuracy", "confidence", "ece"):
        assert f'"{curve}"' in drawn
    assert str(phase["ece_final"]) in drawn


def test_an_experiment_on_a_config_key(study):
    key = "config/config.yaml:steering.accuracy_margin"
    said = done_by(study, "dvc", "exp", "run", "-S", f"{key}=0.03", "steering")
    assert "Running stage 'steering'" in said and "Running stage 'lens'" not in said
    rows = json.loads((study / f"results/embedded/steering/{PART}/summary.json").read_text())
    assert {row["accuracy_margin"] for row in rows["verdicts"]} == {0.03}
    config = yaml.safe_load((study / "config/config.yaml").read_text())
    assert config["steering"]["accuracy_margin"] == 0.03
    shown = json.loads(done_by(study, "dvc", "exp", "show", "--json"))
    assert any(experiment for experiment in shown[-1]["experiments"])


def hydrate_a_clone(study, folder, **variables):
    """Push the results, clone the code, pull them there; return what the remote took."""
    commit(study)
    done_by(study, "dvc", "push", **variables)
    done_by(study, "git", "clone", "--quiet", str(study), str(folder))
    done = make(folder, "hydrate", **variables)
    assert done.returncode == 0, done.said


def check_nothing_to_do(clone, study):
    assert not planned(clone)
    assert "Nothing to be done" in snakemake(clone, "--dry-run").said
    assert done_by(clone, "dvc", "status", "--quiet") == ""
    assert done_by(clone, "git", "status", "--porcelain") == ""
    for path in (study / "results").rglob("*.*"):
        if path.name.endswith(".provenance.json"):  # of the machine that made it: not pulled
            continue
        assert (clone / path.relative_to(study)).read_bytes() == path.read_bytes()


def test_a_hydrated_clone_has_nothing_to_do(study, tmp_path):
    done_by(study, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    clone = tmp_path / "clone"
    hydrate_a_clone(study, clone)
    check_nothing_to_do(clone, study)
    # no weights went to the remote or came from it; extraction fetches them again, by hash
    held = [path.name for path in (clone / "resources/models/tiny").iterdir()]
    assert held == ["manifest.json"]
    weights = (study / "tiny/model.safetensors").stat().st_size
    sizes = {path.stat().st_size for path in (tmp_path / "store").rglob("*") if path.is_file()}
    assert weights not in sizes
    shard = f"results/embedded/extract/{PART}/residuals-1.safetensors"
    (clone / shard).unlink()
    assert planned(clone, "extract") == {"extract_residuals": 1, "extract": 1}
    assert snakemake(clone, "extract").returncode == 0
    assert (clone / shard).read_bytes() == (study / shard).read_bytes()
    assert (clone / "resources/models/tiny/model.safetensors").exists()
    assert done_by(clone, "dvc", "status", "--quiet") == ""

    # what changes later is seen
    change(clone / "config/config.yaml", "accuracy_margin: 0.02", "accuracy_margin: 0.04")
    assert "evaluate_steering" in planned(clone)
    done = make(clone, "hydrate")
    assert done.returncode != 0
    assert "hydrate: the files above are not what dvc.lock says" in done.said
    assert "steering" in done.said and "config/config.yaml" in done.said
    assert "evaluate_steering" in planned(clone)


def test_a_clone_without_a_remote(study, tmp_path):
    """Neither are results taken for agreeing that are not there."""
    clone = tmp_path / "clone"
    done_by(study, "git", "clone", "--quiet", str(study), str(clone))
    done = make(clone, "hydrate")
    assert done.returncode != 0
    assert "hydrate: no remote is configured to pull results from" in done.said
    assert "dvc remote add --default store URL" in done.said and "Traceback" not in done.said
    done = make(clone, "verify")
    assert done.returncode != 0
    phase = f"results/embedded/lens/{PART}/phase.json"
    assert f"metrics/embedded/{PART}.json is committed, but {phase} not there" in done.said
    assert "all numbers agree" in make(study, "verify").said


def test_results_changed_by_hand_are_not_overwritten(study, tmp_path):
    done_by(study, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    done_by(study, "dvc", "push")
    table = study / f"results/embedded/lens/{PART}/metrics.parquet"
    table.write_bytes(b"mine")
    done = make(study, "hydrate")
    assert done.returncode != 0
    assert "hydrate: " in done.said and "results/embedded/lens" in done.said
    assert table.read_bytes() == b"mine"


@pytest.fixture
def sshd(tmp_path):
    """An SSH server on loopback with keys of its own; yields its port and the user's key."""
    if not Path("/usr/sbin/sshd").exists() or os.geteuid() != 0:
        pytest.skip("an SSH server needs root and Debian's openssh-server")
    place = tmp_path / "ssh"
    place.mkdir(mode=0o700)
    for name in ("host", "user"):
        key = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(place / name)]
        subprocess.run(key, check=True)
    shutil.copy(place / "user.pub", place / "authorized_keys")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": place / "host",
        "AuthorizedKeysFile": place / "authorized_keys",
        "PidFile": place / "pid",
        "StrictModes": "no",
        "PermitRootLogin": "prohibit-password",
        "Subsystem": "sftp internal-sftp",
    }
    (place / "config").write_text("".join(f"{key} {value}\n" for key, value in config.items()))
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(["/usr/sbin/sshd", "-D", "-e", "-f", place / "config"])
    yield port, place / "user"
    server.terminate()
    server.wait()


def test_an_ssh_remote(study, tmp_path, sshd):
    port, key = sshd
    url = f"ssh://{os.environ.get('USER', 'root')}@127.0.0.1:{port}{tmp_path / 'store'}"
    done_by(study, "dvc", "remote", "add", "--default", "store", url)
    done_by(study, "dvc", "remote", "modify", "store", "keyfile", str(key))
    clone = tmp_path / "clone"
    hydrate_a_clone(study, clone)
    check_nothing_to_do(clone, study)
    assert any((tmp_path / "store").rglob("*"))
