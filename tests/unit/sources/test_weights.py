"""Models from local folders and GGUF files, the order of their sources, and the manifest."""

import errno
import hashlib
import json
import shutil
from collections import namedtuple

import pytest
import torch
from conftest import save_model, word_tokenizer
from families import SMALL, write_gguf
from fetching import fetch_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from layercal import InputError
from layercal.sources import manifests, weights

USAGE = namedtuple("usage", "total used free")


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def local_model(tmp_path):
    return save_model(tmp_path / "mine")


def entry_of(folder, **more):
    return {"folder": str(folder), "licence": "mine", **more}


@pytest.fixture(scope="module")
def llama():
    torch.manual_seed(0)
    vocabulary = {"vocab_size": len(word_tokenizer())}
    return LlamaForCausalLM(LlamaConfig(**(SMALL | vocabulary)))


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory, llama):
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, llama, word_tokenizer())
    return path


def test_no_room_is_said_before_any_download(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: USAGE(10**9, 10**9 - 5, 5))
    entry = {"licence": "none", "wheels": ["never-asked-for"], "size": 10**9}
    with pytest.raises(InputError, match=r"big: .* needs about 5\.5 GB .* but 0\.0 GB are free"):
        fetch_model("big", entry, tmp_path / "big")
    assert list((tmp_path / "big").iterdir()) == []


def test_a_disk_that_fills_up_is_explained_and_leaves_nothing(local_model, tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(InputError, match="filled up on the way"):
        fetch_model("mine", entry_of(local_model), tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


def test_local_folder(local_model, tmp_path):
    for name in ("modeling_mine.py", "pytorch_model.bin", "consolidated.safetensors"):
        (local_model / name).write_bytes(b"not to be read")
    kept = tmp_path / "kept"
    manifest = fetch_model("mine", entry_of(local_model), kept)
    assert manifest == json.loads((kept / "manifest.json").read_text())
    assert manifest["source"] == entry_of(local_model)
    assert manifest["trust_remote_code"] is False
    assert set(manifest["files"]) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert manifest["files"] == {name: digest(kept / name) for name in manifest["files"]}
    assert {path.name for path in kept.iterdir()} == {*manifest["files"], "manifest.json"}


def test_code_is_taken_only_if_the_entry_trusts_it(local_model, tmp_path):
    (local_model / "modeling_mine.py").write_text("")
    entry = entry_of(local_model, trust_remote_code=True)
    manifest = fetch_model("mine", entry, tmp_path / "kept")
    assert manifest["trust_remote_code"] is True
    assert "modeling_mine.py" in manifest["files"]
    assert weights.verify_manifest(entry_of(local_model), tmp_path / "kept") is None
    fetch_model("mine", entry_of(local_model), tmp_path / "kept")
    assert not (tmp_path / "kept/modeling_mine.py").exists()


def test_a_quantization_is_kept_in_the_manifest_and_files_are_made_once(gguf_file, tmp_path, cache):
    entry = {"gguf": str(gguf_file), "licence": "mine"}
    asked = [entry, entry | {"quantize": "8bit"}, entry | {"quantize": "4bit"}]
    kept = [fetch_model(f"m{n}", one, tmp_path / f"m{n}") for n, one in enumerate(asked)]
    assert [one["source"] for one in kept] == asked
    assert kept[0]["files"] == kept[1]["files"] == kept[2]["files"]
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 1
    manifests_of = [tmp_path / f"m{n}/manifest.json" for n in range(3)]
    assert list(map(manifests.quantization, manifests_of)) == [None, "8bit", "4bit"]
    changed = fetch_model("m0", asked[1], tmp_path / "m0")
    assert changed == kept[1] == json.loads(manifests_of[0].read_text())


def test_shards_of_which_one_is_missing_are_refused(tmp_path):
    save_model(tmp_path / "mine", max_shard_size="20kB")
    shards = sorted((tmp_path / "mine").glob("*.safetensors"))
    assert len(shards) > 1
    manifest = fetch_model("mine", entry_of(tmp_path / "mine"), tmp_path / "kept")
    assert {path.name for path in shards} < set(manifest["files"])
    shards[0].unlink()
    with pytest.raises(InputError, match=r"expected .* all of model-\*-of-\*\.safetensors"):
        fetch_model("mine", entry_of(tmp_path / "mine"), tmp_path / "other")


def test_no_file_of_an_earlier_source_stays(local_model, tmp_path):
    """Transformers would load the old model.safetensors and not the new shards."""
    fetch_model("mine", entry_of(local_model), tmp_path / "kept")
    save_model(tmp_path / "new", max_shard_size="20kB")
    manifest = fetch_model("mine", entry_of(tmp_path / "new"), tmp_path / "kept")
    found = {path.name for path in (tmp_path / "kept").iterdir()}
    assert found == {*manifest["files"], "manifest.json"}
    assert "model.safetensors" not in found


def test_pinned_files_are_checked(local_model, tmp_path):
    pins = {"model.safetensors": digest(local_model / "model.safetensors")}
    entry = entry_of(local_model, files=pins)
    assert fetch_model("mine", entry, tmp_path / "kept")["files"].items() > pins.items()
    for files in ({"model.safetensors": 64 * "0"}, {"tokenizer.json": 64 * "0"}):
        with pytest.raises(InputError, match=f"{64 * '0'} is pinned in config/models.yaml"):
            fetch_model("mine", entry_of(local_model, files=files), tmp_path / "other")
        assert list((tmp_path / "other").iterdir()) == []


def test_damaged_weights_are_found_and_fetched_again(local_model, tmp_path):
    entry, kept = entry_of(local_model), tmp_path / "kept"
    first = fetch_model("mine", entry, kept)
    data = bytearray((kept / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (kept / "model.safetensors").write_bytes(data)
    assert weights.verify_manifest(entry, kept) is None
    assert fetch_model("mine", entry, kept) == first
    assert weights.verify_manifest(entry, kept) == first
    assert weights.verify_manifest({**entry, "licence": "other"}, kept) is None


def test_pickled_weights_are_refused(local_model, tmp_path):
    (local_model / "model.safetensors").rename(local_model / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"saved as pickle are not read.*found .*_model\.bin"):
        fetch_model("mine", entry_of(local_model), tmp_path / "kept")
    assert not (tmp_path / "kept/manifest.json").exists()


def test_gguf_file(gguf_file, llama, tmp_path):
    entry = {"gguf": str(gguf_file), "sha256": digest(gguf_file), "licence": "mine"}
    manifest = fetch_model("tiny", entry, tmp_path / "kept")
    assert manifest["source"] == entry
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {
        *manifest["files"],
        "manifest.json",
    }
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "kept", dtype=torch.float32)
    tokens = torch.arange(20)[None]
    # bfloat16 keeps 8 bits of each weight
    torch.testing.assert_close(model(tokens).logits, llama(tokens).logits, rtol=0.1, atol=0.1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "kept")
    assert tokenizer("Answer: A")["input_ids"] == word_tokenizer()("Answer: A")["input_ids"]
    assert gguf_file.exists()


def test_what_an_older_version_converted_is_not_used_again(gguf_file, tmp_path, monkeypatch):
    """Neither out of the cache nor where it stands: it may say something else."""
    entry = {"gguf": str(gguf_file), "licence": "mine"}
    monkeypatch.setattr(weights, "CONVERSION", weights.CONVERSION - 1)
    fetch_model("tiny", entry, tmp_path / "tiny")
    monkeypatch.undo()
    monkeypatch.setenv("LAYERCAL_CACHE", str(tmp_path / "layercal-cache"))
    made = []
    convert = weights.convert_gguf
    monkeypatch.setattr(weights, "convert_gguf", lambda *paths: made.append(convert(*paths)))
    manifest = fetch_model("tiny", entry, tmp_path / "tiny")
    assert manifest["conversion"] == weights.CONVERSION and len(made) == 1
    assert fetch_model("tiny", entry, tmp_path / "tiny") == manifest and len(made) == 1
    assert fetch_model("tiny", entry, tmp_path / "other") == manifest and len(made) == 1


def test_gguf_files_that_cannot_be_used(gguf_file, llama, tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"no such format")
    write_gguf(tmp_path / "partial.gguf", llama, word_tokenizer(), without="3.mlp.up_proj")
    for entry, message in (
        ({"gguf": str(gguf_file), "sha256": 64 * "0"}, f"{64 * '0'} is pinned"),
        ({"gguf": str(tmp_path / "broken.gguf")}, "broken.gguf: transformers cannot read it"),
        ({"gguf": str(tmp_path / "partial.gguf")}, "it lacks model.layers.3.mlp.up_proj.weight"),
        ({"gguf": str(tmp_path / "none.gguf")}, "none.gguf: there is no such file"),
        ({"folder": str(tmp_path / "none")}, "none: there is no such folder"),
    ):
        with pytest.raises(InputError, match=message):
            fetch_model("tiny", {**entry, "licence": "mine"}, tmp_path / "kept")
        assert list((tmp_path / "kept").iterdir()) == []


def test_gguf_file_in_a_hub_repo(hub, gguf_file, tmp_path):
    """Of many in the repo one is taken; sources that pin one sha256 must both yield it."""
    repo, other = hub.root / "models/org/gguf", tmp_path / "other.gguf"
    (repo / "q4").mkdir(parents=True)
    shutil.copyfile(gguf_file, repo / "q4/tiny.gguf")
    (repo / "q8.gguf").write_bytes(b"larger")
    other.write_bytes(b"not the same")
    place = {"repo": "org/gguf", "revision": hub.commit("models", "org/gguf")}
    common = {"licence": "mine", "sha256": digest(gguf_file)}
    sources = [{"gguf": str(other)}, {"hub": {**place, "file": "q4/tiny.gguf"}}]
    kept = tmp_path / "kept"
    manifest = fetch_model("tiny", {**common, "sources": sources}, kept)
    assert manifest["source"] == {**common, **sources[1]}
    assert not hub.asked("q8.gguf")
    local = {"gguf": str(gguf_file), "licence": "mine"}
    assert manifest["files"] == fetch_model("tiny", local, tmp_path / "local")["files"]
    assert {path.name for path in kept.iterdir()} == {*manifest["files"], "manifest.json"}
    for file, pin, message in (
        ("q4/tiny.gguf", 64 * "0", f"q4/tiny.gguf: sha256 is {digest(gguf_file)}, but 000"),
        ("tiny.gguf", digest(gguf_file), "no file tiny.gguf at .* found q4/tiny.gguf, q8.gguf"),
    ):
        entry = {"licence": "mine", "sha256": pin, "hub": {**place, "file": file}}
        with pytest.raises(InputError, match=message):
            fetch_model("tiny", entry, tmp_path / "refused")
        assert list((tmp_path / "refused").iterdir()) == []


def test_sources_are_tried_in_order(local_model, tmp_path):
    entry = {"licence": "mine", "sources": [{"folder": "/none"}, {"folder": str(local_model)}]}
    manifest = fetch_model("mine", entry, tmp_path / "kept")
    assert manifest["source"] == entry_of(local_model)
    assert weights.verify_manifest(entry, tmp_path / "kept") == manifest
    assert weights.verify_manifest({**entry, "sources": entry["sources"][:1]}, tmp_path) is None


def test_sources_that_all_fail_are_all_named(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: USAGE(10**9, 10**9 - 5, 5))
    entry = {
        "licence": "mine",
        "sources": [{"folder": "/none"}, {"wheels": ["never-asked-for"], "size": 10**9}],
    }
    with pytest.raises(InputError) as error:
        fetch_model("mine", entry, tmp_path / "kept")
    lines = str(error.value).splitlines()
    assert lines[0] == "mine: none of its 2 sources can be used:"
    assert lines[1] == "  folder: /none: there is no such folder"
    assert lines[2].startswith("  wheels: mine: ")
    assert "needs about 5.5 GB of free disk" in lines[2]
