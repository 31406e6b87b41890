"""The cache that working copies share: nothing is fetched twice, nothing damaged is used."""

import errno
import hashlib
import json
import os
import subprocess
import sys

import pytest
from conftest import save_model
from fetching import fetch_model

from layercal import InputError
from layercal.sources import weights

REPO = "org/tiny"


@pytest.fixture
def entry(hub):
    """A model on the Hub."""
    save_model(hub.root / "models" / REPO)
    return {"hub": {"repo": REPO, "revision": hub.commit("models", REPO)}, "licence": "mine"}


def downloads(hub):
    return [request.path for request in hub.requests if "/resolve/" in request.path]


def flip_last_byte(path):
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([byte ^ 1]))


def test_a_second_working_copy_asks_for_nothing(hub, entry, tmp_path):
    first = fetch_model("tiny", entry, tmp_path / "one")
    hub.stop()
    assert fetch_model("tiny", entry, tmp_path / "two") == first
    one, two = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert one.samefile(two)  # linked: no disk is taken twice
    assert not two.stat().st_mode & 0o222


def test_links_that_cannot_reach_are_copies(entry, tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", fail)
    manifest = fetch_model("tiny", entry, tmp_path / "one")
    assert weights.verify_manifest(entry, tmp_path / "one") == manifest
    assert (tmp_path / "one/model.safetensors").stat().st_nlink == 1


def test_two_runs_that_fill_it_at_once(hub, entry, tmp_path):
    command = [sys.executable, "-m", "layercal.stages", "fetch_model", "--model", "tiny"]
    command += ["--entry", str(entry), "--manifest"]
    places = [tmp_path / "one/manifest.json", tmp_path / "two/manifest.json"]
    runs = [subprocess.Popen([*command, str(place)]) for place in places]
    assert [run.wait() for run in runs] == [0, 0]
    assert places[0].read_bytes() == places[1].read_bytes()
    assert len(hub.asked("/cdn/")) == 1
    for place in places:
        assert weights.verify_manifest(entry, place.parent)


def test_damage_in_the_cache_is_found_and_fetched_again(hub, entry, cache, tmp_path):
    first = fetch_model("tiny", entry, tmp_path / "one")
    (kept,) = cache.glob("*/model.safetensors")
    flip_last_byte(kept)  # the working copy's link with it
    hub.requests.clear()
    assert fetch_model("tiny", entry, tmp_path / "two") == first
    assert downloads(hub)
    assert weights.verify_manifest(entry, tmp_path / "two") == first
    assert weights.verify_manifest(entry, tmp_path / "one") is None
    hub.requests.clear()
    weights.restore(tmp_path / "one")
    assert weights.verify_manifest(entry, tmp_path / "one") == first
    assert not downloads(hub)


def test_a_local_file_that_changed_is_not_taken_from_the_cache(tmp_path, cache, monkeypatch):
    local = tmp_path / "mine.gguf"

    def convert(name, source, folder, ready):
        save_model(ready)
        (ready / "vocab.txt").write_bytes(local.read_bytes())

    monkeypatch.setitem(weights.KINDS, "gguf", convert)
    for content in (b"old", b"new"):
        local.write_bytes(content)
        made = tmp_path / content.decode()
        fetch_model("mine", {"gguf": str(local), "licence": "mine"}, made)
        assert (made / "vocab.txt").read_bytes() == content
    assert len(list(cache.glob("*/"))) == 2


def test_a_local_folder_is_not_kept_twice(tmp_path, cache):
    save_model(tmp_path / "mine")
    fetch_model("mine", {"folder": str(tmp_path / "mine"), "licence": "mine"}, tmp_path / "one")
    assert not list(cache.glob("*/"))


def test_a_cache_that_cannot_be_written_is_named(entry, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LAYERCAL_CACHE", str(tmp_path / "file/cache"))
    with pytest.raises(InputError, match=r"file/cache: the cache .* \(Not a directory\); set LAY"):
        fetch_model("tiny", entry, tmp_path / "one")


def test_default_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("LAYERCAL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert weights.cache() == tmp_path / "layercal"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(weights.cache()) == "/home/someone/.cache/layercal"


def test_weights_come_back_by_hash_when_a_model_must_run(hub, entry, cache, tmp_path, caplog):
    """A pulled working copy holds the manifest alone."""
    folder = tmp_path / "one"
    manifest = fetch_model("tiny", entry, folder)
    written = (folder / "manifest.json").stat().st_mtime_ns
    for name in manifest["files"]:
        (folder / name).unlink()
    hub.requests.clear()
    weights.restore(folder)
    assert weights.verify_manifest(entry, folder) == manifest and not downloads(hub)
    flip_last_byte(folder / "model.safetensors")
    weights.restore(folder)
    assert "one: missing or damaged, fetched again: model.safetensors" in caplog.text
    assert weights.verify_manifest(entry, folder) == manifest and downloads(hub)
    hub.requests.clear()
    weights.restore(folder)
    assert not hub.requests
    assert (folder / "manifest.json").stat().st_mtime_ns == written


def test_other_weights_than_the_manifests_are_refused(tmp_path):
    """A local folder that has changed meanwhile: results of both would be mixed."""
    save_model(tmp_path / "mine")
    entry, folder = {"folder": str(tmp_path / "mine"), "licence": "mine"}, tmp_path / "one"
    fetch_model("mine", entry, folder)
    written = (folder / "manifest.json").read_text()
    (folder / "model.safetensors").unlink()
    save_model(tmp_path / "mine", rms_norm_eps=1e-3)
    with pytest.raises(InputError, match=r"now yields another config\.json than manifest\.json"):
        weights.restore(folder)
    assert (folder / "manifest.json").read_text() == written
    digest = hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()
    assert digest == json.loads(written)["files"]["config.json"]
