"""Question sets that are steered in different modes: each page shows what there is of each."""

import shutil

import pandas as pd
import pytest
from chain import Chain, questions
from conftest import ROOT

from layercal.stages.render_atlas import render_atlas
from layercal.stages.render_report import render_report


@pytest.fixture
def both(tmp_path):
    """One set steered in both modes, and the same in lens mode alone, in folders of their own."""
    whole = Chain(tmp_path / "whole")
    whole.fetch(questions("ABCD" * 6))
    for stage in ("prompts", "extract", "lens", "study"):
        getattr(whole, stage)()
    alone = whole.at(tmp_path / "alone")
    shutil.copytree(whole.folder, alone.folder)
    alone.steer(modes=["lens"])
    alone.sweep()
    return whole, alone


def test_a_set_in_lens_mode_alone_reads_as_in_both(both):
    whole, alone = (pd.read_parquet(chain.path("sweep.parquet")) for chain in both)
    assert set(whole["mode"]) > {"lens"} == set(alone["mode"])
    kept = whole[whole["mode"] == "lens"].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, alone)


def test_pages_show_a_set_in_lens_mode_alone(both):
    _, alone = both
    alone.figures()
    alone.explore()
    html = alone.path("page.html")
    render_report(
        notebook=ROOT / "reports/notebooks/report.ipynb",
        model="m",
        questions="own",
        **alone.tables("manifest", "rejected"),
        tables=alone.shown,
        figures=sorted(alone.path("figures").glob("*.png")),
        executed=alone.path("page.ipynb"),
        html=html,
    )
    assert "(<code>lens</code>)" in html.read_text()
    assert "(<code>through-network</code>)" not in html.read_text()


def test_the_atlas_says_in_which_modes_a_set_was_not_steered(both, tmp_path):
    files = {
        "metrics": "metrics.parquet",
        "phases": "phase.json",
        "recalibrations": "recalibration.parquet",
        "recalibrated_phases": "recalibrated-phase.json",
        "summaries": "summary.json",
    }
    paths = {name: [chain.path(file) for chain in both] for name, file in files.items()}
    read = {
        name: [chain.path(f"{name}.parquet") for chain in both] for name in ("prompts", "options")
    }
    asked = {"of_models": ["m", "m"], "of_questions": ["whole", "alone"]}
    table = tmp_path / "comparisons.parquet"
    both[0].comparisons(**asked, **read, phases=paths["phases"], table=table)
    html = tmp_path / "atlas.html"
    named = {"pdf": tmp_path / "atlas.pdf", "csv": tmp_path / "atlas.csv"}
    render_atlas(pairs=["m/whole", "m/alone"], **paths, comparisons=table, html=html, **named)
    text = html.read_text()
    assert text.count("not steered so") == 5 and ">nan<" not in text
