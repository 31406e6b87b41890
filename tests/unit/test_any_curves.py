"""Every model gets all tables and a report, whatever its curves look like."""

import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from chain import SHOWN, Chain, predictions, questions
from conftest import ROOT

N = 24


def still(model):
    """Blocks that write nothing: every layer reads as layer 0 does."""
    for block in model.model.layers:
        block.mlp.down_proj.weight.data.zero_()
        block.self_attn.o_proj.weight.data.zero_()


def loud(model):
    """Surest at layer 0."""
    model.lm_head.weight.data.mul_(5)


def turning(model):
    """The last block changes most predictions."""
    model.model.layers[-1].mlp.down_proj.weight.data.mul_(5)


def sure(model):
    """The last block writes towards the letter C, which it makes surer."""
    down = model.model.layers[-1].mlp.down_proj.weight.data
    down.copy_(model.lm_head.weight.data[-8][:, None].expand_as(down))


def shallow(model):
    """One block is all there is."""
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1


def right(named):
    return named[:, -1]


def wrong(named):
    """A letter that is not named at any layer."""
    return [min(set(range(4)) - set(row)) for row in named.tolist()]


def mixed(named):
    return np.arange(len(named)) % 4


CASES = {
    "constant curves": (still, mixed, 0, 0),
    "constant curves, all right": (still, right, 0, 0),
    "peak at layer 0, all wrong": (loud, wrong, 0, 0),
    "peak at the last layer, all wrong": (sure, wrong, 0, 5),
    "decided at the last layer, all right": (turning, right, 5, 5),
    "one block": (shallow, wrong, 0, 0),
}


def report_of(files, monkeypatch):
    """Run the code of the report's notebook on these files; texts of what it shows."""
    shown = []
    monkeypatch.setattr("layercal.report.notebook.display", lambda one: shown.append(one.data))
    notebook = nbformat.read(ROOT / "reports/notebooks/report.ipynb", 4)
    defaults, *cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    space = {}
    exec(defaults, space)
    space["files"] = files
    for cell in cells:
        exec(cell, space)
    return [re.sub('src="data:[^"]*"', "", one) for one in shown]


@pytest.mark.parametrize("case", CASES)
def test_all_tables_and_a_report(case, tmp_path, monkeypatch):
    change, answers, decision, peak = CASES[case]
    chain = Chain(tmp_path, change)
    chain.fetch(questions("ABCD" * (N // 4)))
    chain.prompts()
    chain.extract()
    chain.lens()
    named = predictions(tmp_path / "options.parquet")
    chain.fetch(questions(["ABCD"[place] for place in answers(named)]))
    chain.prompts()
    chain.extract()
    chain.lens()
    chain.study()

    found = json.loads((tmp_path / "phase.json").read_text())
    assert (found["decision_layer"], found["peak_layer"]) == (decision, peak)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["claims"] and summary["verdicts"]
    assert len(pd.read_parquet(tmp_path / "blocks.parquet"))
    described = pd.read_parquet(tmp_path / "directions.parquet")
    # no block writes layer 0, so there is no update with which to compare a direction
    assert (described["cosine"].isna() == (described["layer"] == 0)).all()
    assert described[["cosine_primary", "agreement"]].notna().all(axis=None)
    chain.figures()
    files = chain.tables("manifest", "rejected", *SHOWN)
    shown = report_of(files | {"figures": chain.path("figures")}, monkeypatch)
    assert sum("<img" in one for one in shown) > 12
    assert [one for one in shown if re.search(r"\bnan\b", one, re.IGNORECASE)] == []
