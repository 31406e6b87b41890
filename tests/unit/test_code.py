"""What a stage depends on is computed from imports, as Python itself would find them."""

import ast
import json

import pytest
from conftest import ROOT

from layercal import code

SOURCE = ROOT / "src/layercal"
MODULES = sorted(SOURCE.rglob("*.py"))


def imported(path):
    """Files that a module imports, by its whole syntax tree."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "a relative import, which is not looked for"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    paths = (SOURCE / name.replace(".", "/").removeprefix("layercal/") for name in found)
    return {path.with_suffix(".py") for path in paths if path.with_suffix(".py").is_file()}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_no_import_is_missed(path):
    assert {file for file in code.imports(path) if file.name != "__init__.py"} == imported(path)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of a few modules; ``add`` writes more."""
    monkeypatch.setattr(code, "SOURCE", tmp_path / "src/layercal")
    monkeypatch.chdir(tmp_path)
    code._file.cache_clear()

    def add(name, text=""):
        path = tmp_path / "src/layercal" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    yield add
    code._file.cache_clear()


def test_code_is_followed_wherever_it_is_imported(package):
    package("stages/a.py", "import torch\nfrom layercal import one\nfrom layercal.room import two")
    package("one.py", "def f():\n    from layercal.room import (  # late\n  three as x,\n )")
    package("room/__init__.py", '"""Only words."""')
    package("room/two.py", "import layercal.one")
    package("room/three.py", "from layercal import full, stages\nfrom layercal.stages import a")
    package("full/__init__.py", "from layercal.full.part import name")
    package("full/part.py")
    package("other.py", "from layercal import one")
    names = ["full/__init__", "full/part", "one", "room/three", "room/two", "stages/a"]
    assert code.code_of("a") == [f"src/layercal/{name}.py" for name in names]


def test_a_notebook_depends_on_what_its_code_imports(package, tmp_path):
    package("stages/a.py")
    package("one.py")
    cells = [("markdown", "from layercal import two"), ("code", "x = 1\nfrom layercal import one")]
    notebook = {"cells": [{"cell_type": kind, "source": [text]} for kind, text in cells]}
    (tmp_path / "n.ipynb").write_text(json.dumps(notebook))
    found = code.code_of("a", beside=["n.ipynb"])
    assert found == ["src/layercal/one.py", "src/layercal/stages/a.py"]


def test_a_digest_changes_with_any_file_and_with_nothing_else(package, monkeypatch, tmp_path):
    package("stages/a.py", "from layercal import one")
    path, other = package("one.py", "x = 1"), package("two.py")
    code._sha256.cache_clear()
    first = code.digest_of("a")
    for changed, text, same in (
        (other, "x = 2", True),
        (path, "x = 1", True),
        (path, "x=1", False),
    ):
        changed.write_text(text)
        code._sha256.cache_clear()
        assert (code.digest_of("a") == first) == same
    path.write_text("x = 1")
    code._sha256.cache_clear()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")  # a workflow that takes this one as a module
    assert code.digest_of("a") == first
    path.rename(path.with_name("three.py"))
    package("stages/a.py", "from layercal import three")
    code.imports.cache_clear()
    code._file.cache_clear()
    assert code.digest_of("a") != first


def test_what_no_result_depends_on_is_apart():
    """A change of how weights are downloaded must not extract anything again."""
    extract = code.code_of("extract_residuals")
    weights = str(SOURCE / "sources/weights.py")
    assert not [path for path in extract if weights.endswith(path)]
    assert [path for path in code.code_of("fetch_model") if weights.endswith(path)]
