"""What a stage asks for and which source files it depends on, read without importing it.

Snakemake and DVC see a command, not what it imports: a rule has a digest of these files among its
params, ``dvc.yaml`` lists them.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from layercal.files import sha256

SOURCE = Path(__file__).parent
# no result depends on how a stage is run, or on how files are fetched again by their hashes
APART = {SOURCE / name for name in ("stages/__init__.py", "sources/manifests.py", "provenance.py")}
# what else than these, files and threads a stage asks for are its rule's params
WILDCARDS = ("model", "questions", "shard")
# wherever in a file; to parse the whole of all files would slow every plan down
IMPORTS = re.compile(r"^[ \t]*((?:from|import) layercal\b[^(\n]*(?:\([^)]*\))?)", re.M)


def stages() -> list[str]:
    """Return the names of all stages."""
    return sorted(path.stem for path in (SOURCE / "stages").glob("[a-z]*.py"))


@dataclass(frozen=True)
class Parameter:
    """What a stage asks for under one name.

    ``kind`` is the type of each value: ``Path`` for a file that it reads, ``Output`` for one that
    it writes, or else ``str``, ``int``, ``float`` or ``dict``.
    """

    name: str
    annotation: str
    required: bool

    @property
    def several(self) -> bool:
        """Whether it is a list."""
        return self.annotation.startswith("list[")

    @property
    def optional(self) -> bool:
        """Whether it may be None."""
        return self.annotation.endswith(" | None")

    @property
    def kind(self) -> str:
        """Type of each value."""
        return self.annotation.removeprefix("list[").rstrip("]").removesuffix(" | None")

    @property
    def is_file(self) -> bool:
        """Whether it is a file, or several."""
        return self.kind in ("Path", "Output")


def parameters(stage: str) -> list[Parameter]:
    """Return what a stage's signature asks for, in its order."""
    text = _text(SOURCE / f"stages/{stage}.py")
    start = re.findall(rf"^def {stage}\(.*?\) -> None:", text, re.M | re.S)[0]
    tree = ast.parse(f"{start} ...")
    function = next(node for node in tree.body if isinstance(node, ast.FunctionDef))
    return [
        Parameter(each.arg, ast.unparse(each).partition(": ")[2], default is None)
        for each, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    ]


def settings(stage: str, config: dict) -> dict:
    """Return what a stage asks for by the name of a config key, in whichever section that stands.

    Where a stage asks for one value and the key has a list, it gets the first, the primary one.
    """
    sections = (value for value in config.values() if isinstance(value, dict))
    values = config | {key: value for section in sections for key, value in section.items()}
    asked = {each.name: each.several for each in parameters(stage) if not each.is_file}
    return {
        name: values[name][0] if isinstance(values[name], list) and not several else values[name]
        for name, several in asked.items()
        if name in values and name not in WILDCARDS
    }


def code_of(*stages: str, beside: Iterable[str | Path] = ()) -> list[str]:
    """Return the source files of stages and of all that they import.

    Parameters
    ----------
    *stages : str
        Modules of ``layercal.stages``.
    beside : iterable of path
        What they run, too: Jupyter notebooks or other sources; not listed themselves.

    Returns
    -------
    list of str
        Paths, sorted; as :func:`seen_from_here`.
    """
    return sorted(map(seen_from_here, _files_of(*stages, beside=beside)))


def _files_of(*stages: str, beside: Iterable[str | Path] = ()) -> set[Path]:
    files: set[Path] = set()
    ahead = {SOURCE / f"stages/{stage}.py" for stage in stages}.union(
        *(imports(Path(path)) for path in beside)
    )
    while ahead:
        path = ahead.pop()
        files.add(path)
        ahead |= imports(path) - files - APART
    return files


def digest_of(*stages: str, beside: Iterable[str | Path] = ()) -> str:
    """Return what changes when code that stages run does; parameters as of :func:`code_of`.

    One param of a rule in place of some twenty input files, each of which Snakemake would follow
    for every job of a large plan.
    """
    listed = sorted(_files_of(*stages, beside=beside))
    parts = "".join(f"{path.name} {_sha256(path)}\n" for path in listed)
    return hashlib.sha256(parts.encode()).hexdigest()[:16]


_sha256 = cache(sha256)


def seen_from_here(path: str | Path) -> str:
    """Return a path relative to the current folder, whole if it lies elsewhere.

    A workflow that takes this one as a module runs elsewhere.
    """
    relative = os.path.relpath(path)
    return os.path.abspath(path) if relative.startswith(os.pardir) else relative


@cache
def imports(path: Path) -> frozenset[Path]:
    """Return the files of this package that a source file or notebook itself imports."""
    names: set[str] = set()
    for node in ast.parse("\n".join(IMPORTS.findall(_text(path)))).body:
        if isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return frozenset(filter(None, map(_file, names - {"layercal"})))


def _text(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")


@cache
def _file(name: str) -> Path | None:
    """Return a module's file; of a package, what Python runs of it, unless that is no code."""
    path = SOURCE.joinpath(*name.split(".")[1:])
    package, module = path / "__init__.py", path.with_suffix(".py")
    if package.is_file():
        body = ast.parse(package.read_text()).body
        return package if any(not isinstance(node, ast.Expr) for node in body) else None
    return module if module.is_file() else None
