"""Files written whole or not at all, and their hashes."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
from pathlib import Path

from layercal import InputError

# a model's tokenizer has one of these, unless it is the model's own code
TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.json", "vocab.txt", "*.tiktoken")


def sha256(path: Path) -> str:
    """Return the hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def keep_shards(folder: Path, kind: str, count: int) -> None:
    """Remove the shards of a finer cut, and how they were made; nothing reads them any more.

    Parameters
    ----------
    folder : path
    kind : str
        Shards are named ``{kind}-{number}``.
    count : int
        Shards that are there to stay.
    """
    kept = {f"{kind}-{number}" for number in range(count)}
    for path in folder.glob(f"{kind}-*"):
        if path.name.partition(".")[0] not in kept:
            path.unlink(missing_ok=True)  # jobs of other shards look, too


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that its final name never holds half of it, whenever the run is killed.

    Raises
    ------
    InputError
        If it cannot be written; what stood there before still does.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for stale in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):  # of a killed run
            stale.unlink(missing_ok=True)
        partial.write_bytes(content.encode() if isinstance(content, str) else content)
        with partial.open("rb") as written:  # on the disk before it gets its name
            os.fsync(written.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(
            f"{path}: cannot be written ({error.strerror}). Make room, or make the folder "
            "writable, and run again: what was finished is kept"
        ) from error
