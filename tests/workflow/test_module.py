"""Another workflow can take this one as a module."""

import shutil

import pytest
from project import planned, small_study, snakemake

pytestmark = pytest.mark.workflow
OTHER = """
configfile: "config/config.yaml"


module layercal:
    snakefile:
        "../layercal/workflow/Snakefile"
    config:
        config


use rule * from layercal as layercal_*


rule mine:
    default_target: True
    input:
        rules.layercal_all.input,
"""


def test_another_workflow_takes_it_as_a_module(tmp_path):
    """From a folder with its own config and sources, under names of its own."""
    project = small_study(tmp_path / "layercal")
    other = tmp_path / "other"
    for name in ("config", "tiny"):
        shutil.copytree(project / name, other / name)
    shutil.copy(project / "own.csv", other)
    (other / "Snakefile").write_text(OTHER)
    here = {"PYTHONPATH": str(project / "src")}
    plan = planned(other, **here)
    assert plan["layercal_render_report"] == 1 and plan["layercal_steer_prompts"] == 2
    assert plan["mine"] == 1
    table, drawn = "resources/questions/own.parquet", "reports/rendered/embedded/workflow.pdf"
    done = snakemake(other, table, drawn, "--cores", "1", **here)
    assert done.returncode == 0, done.said
    assert (other / table).exists() and (other / drawn).exists()
    assert "Nothing to be done" in snakemake(other, "--dry-run", table, drawn, **here).said
