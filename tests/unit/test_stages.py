"""Command lines of the stages: help, and one clear message for bad input."""

import importlib
import logging
import sys

import pytest
from conftest import ROOT

NAMES = sorted(path.stem for path in (ROOT / "src/layercal/stages").glob("[a-z]*.py"))


def run(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"layercal.stages.{name}").main()
    logging.shutdown()
    return stopped.value.code


@pytest.mark.parametrize("name", NAMES)
def test_help(name, monkeypatch, capsys):
    assert run(name, monkeypatch, "--help") == 0
    said = capsys.readouterr().out
    assert f"python -m layercal.stages.{name}" in said
    assert "--log" in said


def test_bad_input_is_one_message(monkeypatch, tmp_path):
    registry, log = tmp_path / "questions.yaml", tmp_path / "logs/stage.log"
    registry.write_text(f"mine: {{file: {tmp_path}/none.csv}}\n")
    out = tmp_path / "mine.parquet"
    arguments = ["--questions", "mine", "--registry", registry, "--out", out]
    arguments += ["--rejected", tmp_path / "left.csv", "--log", log]
    assert run("fetch_questions", monkeypatch, *arguments) == 1
    assert log.read_text() == f"error: {tmp_path}/none.csv: there is no such file\n"
    assert not out.exists()


def test_unexpected_errors_are_told_apart(monkeypatch, tmp_path):
    log = tmp_path / "stage.log"
    registry = tmp_path / "none.yaml"
    arguments = ["--model", "x", "--registry", registry, "--manifest", tmp_path / "m", "--log", log]
    assert run("fetch_model", monkeypatch, *arguments) == 2
    assert log.read_text().startswith("unexpected error:\nTraceback")
