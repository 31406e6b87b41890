"""Files of a Hugging Face Hub repo at a pinned commit, each checked against the Hub's own hash.

The token, if one is needed, is found by huggingface_hub (``HF_TOKEN`` or its login) and is never
seen here. Where the Hub stands may be changed with ``HF_ENDPOINT``, as for all its clients.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import logging
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,  # of the HTTP client, under its name in every version of huggingface_hub
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.hf_api import RepoFile

from layercal import InputError

REGISTRY = {"model": "models.yaml", "dataset": "questions.yaml"}
# its warnings hold the signed addresses of downloads, which are secrets while they last
logging.getLogger("huggingface_hub.file_download").setLevel(logging.ERROR)


def listing(repo: str, revision: str, kind: str = "model") -> dict[str, RepoFile]:
    """Ask for the files of a repo.

    Parameters
    ----------
    repo : str
        ``organisation/name``.
    revision : str
        A commit, 40 hex digits.
    kind : {"model", "dataset"}

    Returns
    -------
    dict of str to RepoFile
        By path in the repo, with sizes and hashes.

    Raises
    ------
    InputError
        If the revision is no commit, or the Hub does not answer or refuses.
    """
    if not re.fullmatch("[0-9a-f]{40}", revision):
        raise InputError(
            f"Hub repo {repo}: revision {revision!r} is not a commit and may move; pin the "
            f"40 hex digits of one in config/{REGISTRY[kind]}{_commit_of(repo, revision, kind)}"
        )
    with explained(repo, revision, kind):
        found = HfApi().list_repo_tree(repo, recursive=True, revision=revision, repo_type=kind)
        return {file.path: file for file in found if isinstance(file, RepoFile)}


def download(repo: str, revision: str, files: dict[str, RepoFile], folder: Path) -> None:
    """Download files of a model repo, going on from those that are there.

    Parameters
    ----------
    repo, revision : str
    files : dict of str to RepoFile
        Those wanted, from :func:`listing`.
    folder : path
        They are placed as in the repo. A download that breaks leaves the finished ones here.

    Raises
    ------
    InputError
        If the Hub refuses or goes away, or a file is not the one it lists.
    """
    for stale in folder.rglob("*.incomplete"):  # of a killed run; no other run takes them up
        stale.unlink()
    for _ in range(2):  # the second time for what an earlier run left damaged
        with explained(repo, revision):
            snapshot_download(
                repo,
                revision=revision,
                local_dir=folder,
                allow_patterns=[glob.escape(name) for name in files],
            )
        wrong = [name for name, file in files.items() if not _is_intact(folder / name, file)]
        if not wrong:
            return
        for name in wrong:
            (folder / name).unlink(missing_ok=True)
    raise InputError(
        f"Hub repo {repo}: {', '.join(wrong)}: not of the size and hash that the Hub lists at "
        f"commit {revision}, and not kept; run again, or use another source"
    )


def _is_intact(path: Path, file: RepoFile) -> bool:
    if not path.exists() or path.stat().st_size != file.size:
        return False
    if file.lfs:
        digest, expected = hashlib.sha256(), file.lfs.sha256
    else:  # small files: the hash that git gives their content
        digest, expected = hashlib.sha1(b"blob %d\0" % file.size), file.blob_id
    with path.open("rb") as content:
        return hashlib.file_digest(content, lambda: digest).hexdigest() == expected


def _commit_of(repo: str, revision: str, kind: str) -> str:
    try:
        found = HfApi().repo_info(repo, revision=revision, repo_type=kind)
        return f"; now it is {found.sha}"
    except (HTTPError, OSError):  # the pin is refused all the same
        return ""


@contextlib.contextmanager
def explained(repo: str, revision: str, kind: str = "model") -> Iterator[None]:
    """Turn what the Hub or the way to it refuses into an :class:`InputError`."""
    try:
        yield
    except (HTTPError, OSError, XetDownloadError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        raise InputError(f"Hub repo {repo}: {_explain(error, repo, revision, kind)}") from error


def _explain(error: BaseException, repo: str, revision: str, kind: str) -> str:
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__:
        error = error.__cause__
    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{'datasets/' * (kind == 'dataset')}{repo}"
        if error.response.status_code == 401:
            return f"it is gated: accept its licence at {page} and set HF_TOKEN to your token"
        return f"it is gated and your token has no access: accept its licence at {page}"
    if isinstance(error, RepositoryNotFoundError):
        return "there is none of that name, or it is private and HF_TOKEN gives no access to it"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no commit {revision}"
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        return "your token is not valid (401)" if status == 401 else f"the Hub answered {status}"
    if isinstance(error, OSError) and error.filename:  # of this disk, not of the way to the Hub
        return (
            f"{error.filename}: cannot be written ({error.strerror}); the Hub's client keeps files "
            "there: set HF_HOME to a folder that can be written"
        )
    # not its own text, which may hold a signed address
    return (
        f"{constants.ENDPOINT} could not be reached or broke off ({type(error).__name__}); run "
        "again to go on, files that were finished are kept"
    )
