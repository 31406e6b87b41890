"""What goes wrong in a month of runs, done for real: nothing finished is lost, nothing wrong stays.

The table in docs/reliability.md says the same in words.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml
from conftest import ROOT, word_tokenizer
from families import tiny, write_gguf
from project import AFTER_CALIBRATION, call, copy_to, environment, planned, small_study, snakemake

from layercal.sources import weights

PART = "tiny/own"
EXTRACTED, STEERED = f"results/embedded/extract/{PART}", f"results/embedded/steering/{PART}"
pytestmark = pytest.mark.workflow

# in the copy only: all that runs dies in the middle of writing the file that DIE_AT names
DEADLY = """
import os, pathlib, signal

write = pathlib.Path.write_bytes

def write_half(self, content):
    if os.environ.get("DIE_AT", "no file") in self.name:
        write(self, content[: len(content) // 2])
        os.killpg(0, signal.SIGKILL)
    return write(self, content)

pathlib.Path.write_bytes = write_half
"""
# the same when a file of a converted model is opened
DEADLY_OPENING = """
import os, signal, sys

def die(event, told):
    if event == "open" and str(told[0]).endswith(os.environ.get("DIE_AT", "no file")):
        os.killpg(0, signal.SIGKILL)

sys.addaudithook(die)
"""


def start(folder, *arguments, **variables):
    """Start the workflow in a process group of its own."""
    return subprocess.Popen(
        ["snakemake", *arguments],
        cwd=folder,
        env=environment(folder, **variables),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(condition, run, seconds=120):
    """Wait until a condition holds, while a run is at work."""
    for _ in range(seconds * 20):
        if condition():
            return
        assert run.poll() is None, "the run ended before the fault"
        time.sleep(0.05)
    raise AssertionError("the moment for the fault never came")


def kill(run):
    os.killpg(run.pid, signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL


def contents(folder, *places):
    """Bytes of all results there; how each was made may differ by the commit."""
    return {
        path.relative_to(folder): path.read_bytes()
        for place in places
        for path in sorted((folder / place).rglob("*"))
        if path.is_file() and ".provenance." not in path.name
    }


def finish(folder, *arguments, **variables):
    done = snakemake(folder, *arguments, **variables)
    assert done.returncode == 0, done.said
    return done


@pytest.mark.parametrize(
    ("target", "shard"),
    [("extract", "residuals"), ("ablation", "blocks"), ("steering", "logits")],
)
def test_killed_in_a_shard(study, finished, target, shard):
    (study / "src/sitecustomize.py").write_text(DEADLY)
    place = study / f"results/embedded/{target}/{PART}"
    for path in [*place.glob(f"{shard}-*"), place / "summary.json"]:
        path.unlink(missing_ok=True)
    finish(study, f"{place.relative_to(study)}/{shard}-0.safetensors")
    assert start(study, target, DIE_AT=f"{shard}-1").wait() == -signal.SIGKILL
    (half,) = place.glob(".*.partial")
    assert f"{shard}-1" in half.name and not (place / f"{shard}-1.safetensors").exists()
    made = (place / f"{shard}-0.safetensors").stat()
    finish(study, target)
    again = (place / f"{shard}-0.safetensors").stat()
    assert (again.st_ino, again.st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert contents(study, "results") == contents(finished, "results")
    assert not planned(study, target)


def test_killed_in_a_notebook(study, finished):
    (study / "src/sitecustomize.py").write_text(DEADLY)
    page = study / "reports/rendered/embedded/tiny/own.html"
    page.unlink()
    target = str(page.relative_to(study))
    assert start(study, target, DIE_AT=page.name).wait() == -signal.SIGKILL
    assert not page.exists()
    finish(study, target)
    assert contents(study, "reports", "results") == contents(finished, "reports", "results")


@pytest.fixture
def hub_study(hub, tmp_path):
    """A study whose model is on the Hub."""
    folder, repo = small_study(tmp_path / "study"), "org/tiny"
    shutil.copytree(folder / "tiny", hub.root / "models" / repo)
    entry = {"hub": {"repo": repo, "revision": hub.commit("models", repo)}, "licence": "none"}
    path = folder / "config/models.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"tiny": entry}))
    return folder


def test_killed_in_a_download(hub, hub_study, tmp_path):
    manifest = "resources/models/tiny/manifest.json"
    hub.cut["model.safetensors"] = 1000
    run = start(hub_study, manifest)
    wait_for(lambda: hub.asked("/cdn/"), run)
    kill(run)
    assert not (hub_study / manifest).exists()
    hub.cut.clear()
    finish(hub_study, manifest)
    interrupted = contents(hub_study, "resources")
    shutil.rmtree(hub_study / "resources")
    finish(hub_study, manifest, LAYERCAL_CACHE=str(tmp_path / "empty"))
    assert interrupted == contents(hub_study, "resources")


def test_killed_in_a_conversion(tmp_path, cache):
    folder, tokenizer = copy_to(tmp_path / "study"), word_tokenizer()
    write_gguf(folder / "tiny.gguf", tiny("llama", vocab_size=len(tokenizer)), tokenizer)
    command = [sys.executable, "-m", "layercal.stages", "fetch_model", "--model", "tiny"]
    command += ["--entry", str({"gguf": "tiny.gguf", "licence": "none"})]
    command += ["--manifest", "resources/models/tiny/manifest.json"]
    (folder / "src/sitecustomize.py").write_text(DEADLY_OPENING)
    deadly = environment(folder, DIE_AT="partial/model/tokenizer_config.json")
    run = subprocess.Popen(command, cwd=folder, env=deadly, start_new_session=True)
    assert run.wait() == -signal.SIGKILL
    assert list(cache.glob("*/partial/model/*")) and not list(cache.glob("*/manifest.json"))
    assert call(folder, *command).returncode == 0
    interrupted = contents(folder, "resources")
    shutil.rmtree(folder / "resources")
    empty = {"LAYERCAL_CACHE": str(tmp_path / "empty")}
    assert call(folder, *command, **empty).returncode == 0
    assert interrupted == contents(folder, "resources")
    assert not list(cache.glob("*/partial"))


def test_two_runs_at_once(study):
    (study / f"{EXTRACTED}/residuals-1.safetensors").unlink()
    log = study / f"logs/embedded/extract/{PART}/residuals-1.log"
    log.unlink()
    first = start(study, "extract")
    wait_for(log.exists, first)
    os.killpg(first.pid, signal.SIGSTOP)  # so that it is at work for as long as the second starts
    try:
        second = snakemake(study, "extract")
    finally:
        os.killpg(first.pid, signal.SIGCONT)
    assert second.returncode == 1
    assert f"another run is at work in {study}; wait until it has finished" in second.said
    assert first.wait() == 0
    assert not planned(study, "extract")


def damage(path, how):
    data = bytearray(path.read_bytes())
    if how == "truncated":
        del data[len(data) // 2 :]
    elif how == "garbage":
        data[:] = b"not what it should be"
    else:
        data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "garbage"])
def test_a_damaged_shard_is_named_and_made_again(study, finished, how):
    shard = study / f"{EXTRACTED}/residuals-1.safetensors"
    whole = shard.read_bytes()
    damage(shard, how)
    done = snakemake(study, "lens")
    assert done.returncode == 1
    assert f"{EXTRACTED}/residuals-1.safetensors" in done.said
    assert "is damaged" in done.said and "delete it and run again" in done.said
    shard.unlink()
    finish(study, "lens")
    assert shard.read_bytes() == whole
    assert contents(study, "results") == contents(finished, "results")


def test_a_flipped_byte_in_the_weights_is_found_before_they_are_used(study, finished):
    model = study / "resources/models/tiny/model.safetensors"
    whole = model.read_bytes()
    damage(model, "flipped")
    (study / f"{EXTRACTED}/residuals-1.safetensors").unlink()
    finish(study, "extract")
    assert model.read_bytes() == whole
    log = (study / f"logs/embedded/extract/{PART}/residuals-1.log").read_text()
    assert "tiny: missing or damaged, fetched again: model.safetensors" in log
    assert contents(study, "results") == contents(finished, "results")


@contextlib.contextmanager
def mounted(place, options):
    """A small disk of its own."""
    place.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


needs_mount = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")


@needs_mount
def test_a_full_disk(study, finished):
    place = study / EXTRACTED
    shutil.move(place, study / "aside")
    with mounted(place, "size=64k"):
        shutil.copy2(study / "aside/prompts.parquet", place)
        with contextlib.suppress(OSError), (place / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))
        done = snakemake(study, "extract")
        assert done.returncode == 1
        full = r"residuals-\d\.safetensors: cannot be written \(No space left on device\)"
        assert re.search(full, done.said)
        assert {path.name for path in place.iterdir()} == {"prompts.parquet", "filler"}
    # room is made: the run goes on from what is there
    shutil.copy2(study / "aside/prompts.parquet", place)
    finish(study, "extract")
    assert contents(study, "results") == contents(finished, "results")


@needs_mount
def test_results_that_cannot_be_written(study, finished):
    place = study / f"results/embedded/directions/{PART}"
    shutil.rmtree(place)
    with mounted(place, "ro"):
        done = snakemake(study, "directions")
    assert done.returncode == 1
    assert "Read-only file system" in done.said and str(place.relative_to(study)) in done.said
    finish(study, "directions")
    assert contents(study, "results") == contents(finished, "results")


def test_a_job_that_fails_leaves_the_numbers_that_git_keeps(study, finished):
    """And what it was to make counts as missing, so that nothing old is taken for it."""
    path = study / "config/config.yaml"
    config = yaml.safe_load(path.read_text())
    config["calibration"]["min_group"] = 25
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    assert planned(study, "lens") == AFTER_CALIBRATION
    for _ in range(2):
        done = snakemake(study, "lens")
        assert done.returncode == 1
        assert "24 questions in all, fewer than the 25" in done.said
        assert contents(study, "metrics", "plots") == contents(finished, "metrics", "plots")
        assert not (study / f"results/embedded/lens/{PART}/phase.json").exists()
    config["calibration"]["min_group"] = 10
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    finish(study, "lens")
    assert contents(study, "results", "metrics") == contents(finished, "results", "metrics")


def test_a_model_that_yields_nan(study):
    from safetensors.torch import load_file, save_file

    path = study / "tiny/model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.2.mlp.down_proj.weight"][0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    for manifest in study.glob("resources/models/tiny/*"):
        manifest.unlink()
    shutil.rmtree(study / "results/embedded/extract")
    done = snakemake(study, "extract")
    assert done.returncode == 1
    damaged = "model.layers.2.mlp.down_proj.weight"
    assert f"its logits are NaN or infinite, and so are entries of {damaged}" in done.said
    assert not list(study.glob(f"{EXTRACTED}/residuals-*"))


OUT_OF_MEMORY = """
import logging, resource, torch
from families import tiny
from layercal import model
from layercal.model import extract

def allow(more):
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more,) * 2)

torch.set_num_threads(1)
logging.basicConfig(format="%(message)s")
read = model.LensModel(tiny("llama", intermediate_size=1 << 16, num_hidden_layers=1))
prompts = [[3 + (row + place) % 90 for place in range(100)] for row in range(16)]
alone = extract.read(read, prompts, batch_tokens=100)["residuals"]
allow(300 << 20)
together = extract.read(read, prompts, batch_tokens=1600)["residuals"]
torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
allow(20 << 20)
try:
    extract.read(read, prompts, batch_tokens=200)
except extract.InputError as error:
    print(error)
"""


def test_a_batch_too_large_for_memory_is_halved():
    """The operating system refuses the memory: really, not by a stand-in."""
    done = call(ROOT, sys.executable, "-c", OUT_OF_MEMORY, PYTHONPATH=f"{ROOT}/src:{ROOT}/tests")
    assert done.returncode == 0, done.said
    assert "out of memory at 16 prompts of up to 100 tokens; going on with half" in done.said
    assert "out of memory: a single prompt of 100 tokens does not fit" in done.said


def test_a_clock_set_back(study, finished):
    """What is made at an earlier hour than what it is made from counts as made all the same."""
    year = 365 * 86400
    for path in (study / "results/embedded/extract").rglob("*"):
        os.utime(path, (time.time() + year, time.time() + year))
    assert not planned(study)
    (study / f"{STEERED}/summary.json").unlink()
    finish(study, "steering")
    assert contents(study, "results") == contents(finished, "results")
    assert not planned(study, "steering")


def test_a_job_that_outlives_its_killed_run(study, finished):
    """Only Snakemake is killed: its job goes on beside that of the next run."""
    (study / f"{EXTRACTED}/residuals-1.safetensors").unlink()
    log = study / f"logs/embedded/extract/{PART}/residuals-1.log"
    log.unlink()
    run = start(study, "extract")
    wait_for(log.exists, run)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    finish(study, "extract")
    assert contents(study, "results") == contents(finished, "results")
    manifest = json.loads((study / "resources/models/tiny/manifest.json").read_text())
    assert weights.verify_manifest(manifest["source"], study / "resources/models/tiny")
