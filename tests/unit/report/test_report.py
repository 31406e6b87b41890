"""The report's notebook runs by the study's own interpreter, where it lies, and again there."""

import json
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from chain import Chain, questions
from conftest import ROOT
from nbclient import NotebookClient

from layercal.report.notebook import Report
from layercal.stages.render_report import render_report, strip
from layercal.steering import steered


@pytest.fixture
def rendered(tmp_path, monkeypatch, capfd):
    """Folder of a study whose report was rendered beside the user's own kernel and settings."""
    kernel = tmp_path / "jupyter/kernels/python3/kernel.json"
    kernel.parent.mkdir(parents=True)
    spec = {"argv": ["false", "{connection_file}"], "display_name": "other", "language": "python"}
    kernel.write_text(json.dumps(spec))
    startup = tmp_path / "ipython/profile_default/startup/own.py"
    startup.parent.mkdir(parents=True)
    startup.write_text("raise SystemExit('the user starts with this')")
    settings = tmp_path / "matplotlibrc"
    settings.write_text("text.usetex: True\n")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    monkeypatch.setenv("MATPLOTLIBRC", str(settings))
    chain = Chain(tmp_path)
    chain.fetch(questions("ABCD" * 6))
    chain.prompts()
    chain.extract()
    chain.lens()
    chain.study()
    chain.figures()
    capfd.readouterr()
    monkeypatch.chdir(tmp_path)
    render_report(
        notebook=ROOT / "reports/notebooks/report.ipynb",
        model="m",
        questions="own",
        **chain.tables("manifest", "rejected"),
        tables=chain.shown,
        figures=sorted(chain.path("figures").glob("*.png")),
        executed=Path("pages/of/m-own.ipynb"),
        html=Path("pages/of/m-own.html"),
    )
    return tmp_path


def test_a_mode_is_shown_where_it_was_run_under_what_it_says_of_itself(monkeypatch):
    mode = steered.Mode(lambda layer, final: layer, "read twice", "Nothing acts on it.")
    monkeypatch.setitem(steered.MODES, "twice", mode)
    report, shown = Report.__new__(Report), []
    verdicts = {"mode": ["twice", "lens", "lens"], "group": ["all", "all", "category:A"]}
    report.verdicts = pd.DataFrame(verdicts)
    monkeypatch.setattr(report, "heading", shown.append)
    monkeypatch.setattr(report, "_mode", lambda mode, rows: shown.append((mode, len(rows))))
    report.steering()
    assert shown[:2] == ["### Read twice (`twice`)\n\nNothing acts on it.", ("twice", 1)]
    assert "(`lens`)" in shown[2] and shown[3:] == [("lens", 1)]


def outputs(notebook):
    return [cell["outputs"] for cell in notebook.cells if cell.cell_type == "code"]


def test_the_rendered_notebook_runs_again_where_it_lies(rendered, monkeypatch, capfd):
    said = capfd.readouterr()
    assert "TCP" not in said.err + said.out and "Warning" not in said.err
    path = rendered / "pages/of/m-own.ipynb"
    text = path.read_text()
    assert str(rendered) not in text and str(ROOT) not in text and sys.prefix not in text
    assert "../../prompts.parquet" in text
    # as it is done by hand, with whatever kernel the user has, here the installed one
    monkeypatch.delenv("JUPYTER_PATH")
    monkeypatch.delenv("IPYTHONDIR")
    first = nbformat.read(path, 4)
    again = nbformat.read(path, 4)
    NotebookClient(again, resources={"metadata": {"path": path.parent}}).execute()
    strip(again)
    assert outputs(again) == outputs(first)
    assert sum(map(len, outputs(first))) > 30
