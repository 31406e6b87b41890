"""Several studies in one project: none overwrites what another made."""

import itertools
from pathlib import Path

import pytest
import yaml
from project import copy_to, planned, snakemake
from test_faults import contents, finish

MADE = ("results", "metrics", "plots", "reports/rendered")
pytestmark = pytest.mark.workflow


def test_another_setting_is_another_study(study, finished):
    for settings, said in (
        (["limit=12"], "limit: 12, its own: null"),
        (["shots=1", "limit=12"], "shots: 1, its own: 0"),
        (["extract={dtype: bfloat16}"], 'extract.dtype: "bfloat16", its own: "float32"'),
        (["study=embedded", "limit=12"], "limit: 12, its own: null"),
    ):
        for more in ((), ("--dry-run",)):
            done = snakemake(study, *more, "--config", *settings)
            assert done.returncode == 1
            assert "not the settings of the study 'embedded'" in done.said and said in done.said
            assert "--config study=quick " in done.said and "Traceback" not in done.said
    assert contents(study, *MADE) == contents(finished, *MADE)

    finish(study, "lens", "--config", "study=quick", "limit=12")
    for made in ("results/quick/lens/tiny/own/phase.json", "metrics/quick/tiny/own.json"):
        assert '"n": 12' in (study / made).read_text()
    done = snakemake(study, "--config", "study=quick", "limit=14")
    assert done.returncode == 1
    assert "the study 'quick' holds what config/config.yaml with limit=12 made" in done.said
    assert "limit: 14 here, 12 there" in done.said
    (study / "other").mkdir()
    (study / "other/quick.yaml").write_text("limit: 12\nshots: 1\n")
    done = snakemake(study, "--configfile", "other/quick.yaml")
    assert done.returncode == 1 and "shots: 1 here, 0 there" in done.said
    before = contents(finished, *MADE)
    after = contents(study, *MADE)
    assert {path: after[path] for path in before} == before
    assert not planned(study)


def test_a_choice_of_models_leaves_the_pages_of_the_whole_study(study):
    """They are made again with all of it, and only then."""
    path = study / "config/models.yaml"
    registry = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(registry | {"more": registry["tiny"]}))
    config = study / "config/config.yaml"
    settings = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(settings | {"models": ["tiny", "more"]}, sort_keys=False))
    whole = {"render_index", "render_atlas", "render_explorer"}
    # the claims of a study share one level, also with a model that is not asked for
    again = {"evaluate_steering", "draw_figures", "render_report", "all"}
    assert set(planned(study, "--config", "models=[tiny]")) == again
    chosen = planned(study, "--config", "models=[more]")
    assert chosen["render_report"] == 1 and not whole & set(chosen)
    assert whole < set(planned(study)) and planned(study)["render_report"] == 2
    assert whole < set(planned(study, "--config", "models=[more,tiny]"))


def test_names_that_look_alike_share_no_page(tmp_path):
    """A point is a point, and no two pairs make one path."""
    folder = copy_to(tmp_path / "study")
    models, sets = ["llm", "llm-mmlu", "v1.5", "v1-5"], ["mmlu-pro", "pro", "pro.figures"]
    (folder / "own.csv").write_text("question,A,B,answer\n")
    source = {"hub": {"repo": "some/model", "revision": 40 * "0"}, "licence": "none"}
    for registry, entries in {
        "models": dict.fromkeys(models, source),
        "questions": {name: {"file": "own.csv"} for name in sets},
    }.items():
        (folder / f"config/{registry}.yaml").write_text(yaml.safe_dump(entries))
    (folder / "mine.yaml").write_text(yaml.safe_dump({"models": models, "questions": sets}))
    done = snakemake(folder, "--configfile", "mine.yaml", "--summary")
    assert done.returncode == 0, done.said
    rows = [line.split("\t") for line in done.said.splitlines() if line.count("\t") > 3]
    made = [row[0] for row in rows[1:]]
    for one, other in itertools.product(models, sets):
        assert f"reports/rendered/mine/{one}/{other}.html" in made
    assert len(made) == len(set(made)) > 300
    folders = {str(parent) for path in made for parent in Path(path).parents}
    assert not folders & set(made)


def test_bad_names_are_said_at_once_before_anything_runs(tmp_path):
    folder = copy_to(tmp_path / "study")
    for registry, text in {
        "models": "org/model: {folder: m, licence: x}\n007: {folder: m, licence: x}\n",
        "questions": "no: {file: own.csv}\nmy set: {file: own.csv}\n2024-01-31: {file: own.csv}\n",
    }.items():
        path = folder / f"config/{registry}.yaml"
        path.write_text(path.read_text() + text)
    done = snakemake(folder, "--dry-run", "--config", "study=c++")
    assert done.returncode == 1 and "Traceback" not in done.said
    for said in (
        "models: 'org/model' holds '/'",
        "models: 7 is no text but a number to YAML",
        "questions: False is no text but yes or no",
        "questions: 'my set' holds ' '",
        "questions: datetime.date(2024, 1, 31) is no text but a date",
        "study: 'c++' holds '+'",
    ):
        assert said in done.said
