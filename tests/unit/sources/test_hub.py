"""Models from the Hub, by its real client from a Hub on loopback, and all that may go wrong."""

import hashlib
import logging
import os
import shutil
import subprocess
import sys

import huggingface_hub
import pytest
from conftest import ROOT, save_model
from fetching import fetch_model

from layercal import InputError
from layercal.sources import weights

REPO = "org/name"
NEEDED = {"config.json", "generation_config.json", "model.safetensors"}
NEEDED |= {"tokenizer.json", "tokenizer_config.json"}
TOKEN = "hf_" + 34 * "x"


@pytest.fixture
def repo(hub, monkeypatch):
    """A model's folder on the Hub, with all that such repos hold besides."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's retries
    folder = save_model(hub.root / "models" / REPO)
    (folder / "original").mkdir()
    (folder / "onnx").mkdir()
    for name in (
        "README.md",
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "modeling_mine.py",
        "onnx/config.json",
        "original/consolidated.00.pth",
        "pytorch_model.bin",
        "tokenizer.py",
        "training_args.bin",
    ):
        (folder / name).write_text(f"{{}} {name}")
    return folder


def entry_of(hub, **more):
    revision = hub.commit("models", REPO)
    return {"hub": {"repo": REPO, "revision": revision}, "licence": "mine", **more}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def refusal(entry, folder):
    """What is said of a fetch that must fail; nothing may be left under a final name."""
    with pytest.raises(InputError) as error:
        fetch_model("tiny", entry, folder)
    assert contents(folder) == {}
    assert not (folder / "partial").exists()
    return str(error.value)


def test_only_the_files_needed_come_with_their_hashes(hub, repo, tmp_path):
    entry, kept = entry_of(hub), tmp_path / "kept"
    manifest = fetch_model("tiny", entry, kept)
    assert manifest["source"] == entry
    assert set(manifest["files"]) == NEEDED
    assert contents(kept).keys() == {*NEEDED, "manifest.json"}
    assert {path.name for path in kept.iterdir()} == {*NEEDED, "manifest.json"}
    for name, digest in manifest["files"].items():
        assert hashlib.sha256((kept / name).read_bytes()).hexdigest() == digest
        assert (kept / name).read_bytes() == (repo / name).read_bytes()
    assert {request.path.rsplit("/", 1)[1] for request in hub.asked("/resolve/", "HEAD")} == NEEDED
    assert not any("authorization" in request.headers for request in hub.requests)
    hub.stop()
    assert fetch_model("tiny", entry, kept) == manifest


def test_code_comes_only_if_the_entry_trusts_it(hub, repo, tmp_path):
    manifest = fetch_model("tiny", entry_of(hub, trust_remote_code=True), tmp_path / "kept")
    assert set(manifest["files"]) == {*NEEDED, "modeling_mine.py", "tokenizer.py"}
    assert manifest["trust_remote_code"] is True


def test_a_download_that_breaks_goes_on_from_the_byte(hub, repo, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 500)
    hub.cut["model.safetensors"] = 1000

    def mend(seconds):
        if hub.asked("/model.safetensors"):
            hub.cut.clear()

    monkeypatch.setattr("time.sleep", mend)
    fetch_model("tiny", entry_of(hub), tmp_path / "kept")
    first, second = hub.asked("/model.safetensors")
    assert "range" not in first.headers
    assert second.headers["range"] == "bytes=1000-"
    kept = contents(tmp_path / "kept")
    assert kept["model.safetensors"] == contents(repo)["model.safetensors"]
    assert caplog.text == ""  # warnings would hold signed addresses


def test_a_run_that_breaks_is_taken_up_by_the_next(hub, repo, tmp_path, cache, monkeypatch):
    entry, kept = entry_of(hub), tmp_path / "kept"
    hub.cut["model.safetensors"] = 1000
    assert "broke off (RemoteProtocolError); run again" in refusal(entry, kept)
    finished = {path.name for path in cache.glob("*/hub/*") if path.is_file()}
    assert finished == NEEDED - {"model.safetensors"}
    hub.cut.clear()
    hub.requests.clear()
    manifest = fetch_model("tiny", entry, kept)
    asked = {request.path.rsplit("/", 1)[1] for request in hub.asked("/resolve/", "HEAD")}
    assert asked == {"model.safetensors"}
    assert not list(cache.glob("*/hub"))
    monkeypatch.setenv("LAYERCAL_CACHE", str(tmp_path / "empty"))
    assert manifest == fetch_model("tiny", entry, tmp_path / "at-once")
    assert contents(kept) == contents(tmp_path / "at-once")


def test_what_a_killed_run_leaves_is_mended(hub, repo, tmp_path, cache):
    entry, kept = entry_of(hub), tmp_path / "kept"
    hub.cut["model.safetensors"] = 1000
    refusal(entry, kept)
    hub.cut.clear()
    (place,) = cache.glob("*/")
    (place / "hub/config.json").write_text("damaged")
    litter = place / "hub/.cache/huggingface/download/x.1.incomplete"
    litter.write_bytes(b"half")
    (place / "partial").mkdir()
    (place / "partial/half.gguf").write_bytes(b"half")
    fetch_model("tiny", entry, kept)
    assert contents(kept)["config.json"] == (repo / "config.json").read_bytes()
    assert {path.name for path in kept.iterdir()} == {*NEEDED, "manifest.json"}


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_file_of_another_hash_is_refused(hub, repo, tmp_path, cache, name):
    hub.flipped.add(name)
    message = refusal(entry_of(hub), tmp_path / "kept")
    assert f"{name}: not of the size and hash that the Hub lists" in message
    assert list(cache.glob("*/hub")) and not list(cache.glob(f"*/hub/{name}"))
    hub.flipped.clear()
    fetch_model("tiny", entry_of(hub), tmp_path / "kept")


def test_a_file_of_another_hash_than_pinned_is_refused(hub, repo, tmp_path):
    digest = hashlib.sha256((repo / "model.safetensors").read_bytes()).hexdigest()
    fetch_model("tiny", entry_of(hub, files={"model.safetensors": digest}), tmp_path / "kept")
    entry = entry_of(hub, files={"model.safetensors": 64 * "0"})
    message = refusal(entry, tmp_path / "other")
    assert f"model.safetensors: sha256 is {digest}, but {64 * '0'} is pinned" in message
    assert list((tmp_path / "other").iterdir()) == []


def test_gated_repo(hub, repo, tmp_path, monkeypatch):
    entry, kept, page = entry_of(hub), tmp_path / "kept", f"{hub.url}/{REPO}"
    hub.gated[REPO] = TOKEN
    message = refusal(entry, kept)
    assert f"{REPO}: it is gated: accept its licence at {page} and set HF_TOKEN" in message
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    assert f"your token has no access: accept its licence at {page}" in refusal(entry, kept)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetch_model("tiny", entry, kept)


def test_the_token_goes_to_the_hub_alone(hub, repo, tmp_path):
    """Through the stage, as the workflow runs it: not into manifest, log or output."""
    hub.gated[REPO] = TOKEN
    broken = {"hub": {"repo": REPO, "revision": 40 * "0"}}
    entry = entry_of(hub)
    source = {"hub": entry.pop("hub")}
    manifest, log = tmp_path / "kept/manifest.json", tmp_path / "log"
    command = [sys.executable, "-m", "layercal.stages", "fetch_model", "--model", "tiny"]
    command += ["--entry", str({**entry, "sources": [broken, source]})]
    command += ["--manifest", str(manifest), "--log", str(log)]
    environment = {**os.environ, "HF_TOKEN": TOKEN, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, log.read_text()
    sent = {r.headers["host"] for r in hub.requests if TOKEN in r.headers.get("authorization", "")}
    assert {f"http://{host}" for host in sent} == {hub.url}
    assert hub.asked("/cdn/")
    assert "on to its next source, since Hub repo org/name: it has no commit 000" in log.read_text()
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert not any(TOKEN.encode() in content for content in written)
    assert TOKEN not in done.stdout + done.stderr


def test_a_token_that_is_not_valid(hub, repo, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.expired.add(TOKEN)
    message = refusal(entry_of(hub), tmp_path / "kept")
    assert message == f"Hub repo {REPO}: your token is not valid (401)"


@pytest.mark.parametrize("token", [None, TOKEN])
def test_no_such_repo(hub, repo, tmp_path, monkeypatch, token):
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    entry = entry_of(hub)
    entry["hub"]["repo"] = "org/other"
    message = refusal(entry, tmp_path / "kept")
    assert message.startswith("Hub repo org/other: there is none of that name, or it is private")


def test_no_such_commit(hub, repo, tmp_path):
    entry = entry_of(hub)
    entry["hub"]["revision"] = 40 * "f"
    assert refusal(entry, tmp_path / "kept") == f"Hub repo {REPO}: it has no commit {40 * 'f'}"


def test_a_branch_is_refused_and_its_commit_named(hub, repo, tmp_path):
    entry = entry_of(hub)
    commit, entry["hub"]["revision"] = entry["hub"]["revision"], "main"
    message = refusal(entry, tmp_path / "kept")
    assert "revision 'main' is not a commit and may move; pin the 40 hex digits" in message
    assert message.endswith(f"; now it is {commit}")
    hub.stop()
    assert refusal(entry, tmp_path / "kept").endswith("of one in config/models.yaml")


def test_a_branch_that_moves_leaves_the_pinned_commit(hub, repo, tmp_path):
    entry, old = entry_of(hub), (repo / "model.safetensors").read_bytes()
    (repo / "model.safetensors").write_bytes(old[:-1] + bytes([old[-1] ^ 1]))
    assert hub.commit("models", REPO) != entry["hub"]["revision"]
    fetch_model("tiny", entry, tmp_path / "kept")
    assert contents(tmp_path / "kept")["model.safetensors"] == old
    assert weights.verify_manifest(entry_of(hub), tmp_path / "kept") is None
    fetch_model("tiny", entry_of(hub), tmp_path / "kept")
    assert contents(tmp_path / "kept")["model.safetensors"] != old


def test_pickled_weights_are_refused_before_any_download(hub, repo, tmp_path):
    (repo / "model.safetensors").unlink()
    message = refusal(entry_of(hub), tmp_path / "kept")
    assert message.startswith(f"Hub repo {REPO}: expected config.json and the weights as model.saf")
    assert "(models saved as pickle are not read); found" in message
    assert hub.asked("/resolve/", "HEAD") == hub.asked("/resolve/") == []


def test_no_room_is_said_before_any_download(hub, repo, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert "of free disk for this model, but 0.0 GB are free" in refusal(
        entry_of(hub), tmp_path / "kept"
    )
    assert hub.asked("/resolve/", "HEAD") == hub.asked("/resolve/") == []


def test_a_hub_that_is_gone_leaves_the_next_source(hub, repo, tmp_path, caplog):
    entry = entry_of(hub)
    sources = [{"hub": entry.pop("hub")}, {"folder": str(repo)}]
    hub.stop()
    with caplog.at_level(logging.WARNING, "layercal"):
        manifest = fetch_model("tiny", {**entry, "sources": sources}, tmp_path / "kept")
    assert manifest["source"] == {"folder": str(repo), "licence": "mine"}
    assert f"{hub.url} could not be reached or broke off (ConnectError)" in caplog.text
    message = refusal({**entry, "sources": [sources[0], {"folder": "/none"}]}, tmp_path / "other")
    assert message.splitlines() == [
        "tiny: none of its 2 sources can be used:",
        f"  hub: Hub repo {REPO}: {hub.url} could not be reached or broke off (ConnectError); run "
        "again to go on, files that were finished are kept",
        "  folder: /none: there is no such folder",
    ]


def test_a_model_that_does_not_answer_is_refused_and_not_asked_for_again(hub, repo, tmp_path):
    """It stays in the cache: what is lacking may be a package here."""
    (repo / "tokenizer.json").write_text("{}")
    entry, kept = entry_of(hub), tmp_path / "kept"
    message = refusal(entry, kept)
    assert message.startswith(f"Hub repo {REPO}: no tokenizer that transformers can load: KeyError")
    hub.stop()
    assert refusal(entry, kept) == message


@pytest.mark.parametrize("kind", ["model", "questions"])
def test_a_folder_of_the_client_that_cannot_be_written(hub, repo, tmp_path, kind):
    """In a process of its own, since the clients read HF_HOME once."""
    place = {"model": REPO, "questions": "org/questions"}[kind]
    rows = {"question": "1 + 1?", "choices": [["1", "2", "3", "4"]], "answer": 1}
    data = hub.add_dataset("org/questions", {"test": rows})
    revision = data if kind == "questions" else hub.commit("models", REPO)
    source = {"repo": place, "revision": revision}
    if kind == "questions":
        source |= {"config": "default", "splits": ["test"]}
    log = tmp_path / "log"
    outs = {"model": ["--manifest", "kept/manifest.json"]}
    outs["questions"] = ["--table", "kept/mine.parquet", "--rejected", "kept/left.csv"]
    command = [sys.executable, "-m", "layercal.stages", f"fetch_{kind}", f"--{kind}", "mine"]
    command += ["--entry", str({"hub": source, "licence": "mine"}), "--log", str(log), *outs[kind]]
    environment = {**os.environ, "HF_HOME": "/dev/null/home", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, cwd=tmp_path)
    assert done.returncode == 1
    said = log.read_text()
    assert said.startswith(f"error: Hub repo {place}: /dev/null/home/")
    assert "cannot be written (Not a directory)" in said and "set HF_HOME to a folder" in said
