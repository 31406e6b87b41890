"""The paper's study end to end: tiny models of its four architectures, from a Hub on loopback."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import word_tokenizer
from families import tiny
from hub import Hub
from project import copy_to, planned, snakemake

PAPER = ("--configfile", "config/paper.yaml")
FAMILIES = {"phi-2": "phi", "llama-2-7b": "llama", "llama-3-8b": "llama", "mistral-7b": "mistral"}
SUBJECTS = {
    "STEM": "astronomy",
    "Humanities": "philosophy",
    "Social Sciences": "sociology",
    "Other": "anatomy",
}

pytestmark = pytest.mark.workflow


def test_whole_dag_is_planned(tmp_path):
    folder = copy_to(tmp_path / "layercal")
    config = yaml.safe_load((folder / "config/paper.yaml").read_text())
    jobs = planned(folder, *PAPER)
    shards = config["extract"]["shards"]
    assert jobs["fetch_model"] == jobs["read_lens"] == jobs["render_report"] == 4
    assert jobs["extract_residuals"] == jobs["steer_prompts"] == 4 * shards
    assert jobs["fetch_questions"] == jobs["render_index"] == jobs["measure_comparisons"] == 1


def questions(count, rng):
    """Rows in the dataset's own form."""
    return [
        {
            "question": f"What is {a} + {b} ({subject})?",
            "subject": subject,
            "choices": [str(a + b + step) for step in (1, 0, 2, 3)],
            "answer": 1,
        }
        for subject in SUBJECTS.values()
        for a, b in rng.integers(0, 1000, (count, 2))
    ]


def serve(hub, registries, rng):
    """Put tiny models and made questions on the Hub, and pin the registries to them."""
    tokenizer = word_tokenizer(" ABCD")
    for name, family in FAMILIES.items():
        place = registries["models"][name]["hub"]
        folder = hub.root / "models" / place["repo"]
        made = tiny(family, vocab_size=len(tokenizer), max_position_embeddings=512)
        made.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        place["revision"] = hub.commit("models", place["repo"])
    place = registries["questions"]["mmlu"]["hub"]
    rows = {"test": questions(11, rng), "dev": questions(1, rng)}
    place["revision"] = hub.add_dataset(place["repo"], rows, place["config"])


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """The finished study."""
    root = tmp_path_factory.mktemp("paper")
    folder, hub = copy_to(root / "layercal"), Hub(root / "hub")
    paths = {name: folder / f"config/{name}.yaml" for name in ("models", "questions", "paper")}
    read = {name: yaml.safe_load(path.read_text()) for name, path in paths.items()}
    serve(hub, read, np.random.default_rng(0))
    read["paper"]["extract"]["shards"] = 1
    read["paper"]["nullspace"] = {"rules": ["energy=0.9", "k=4"]}  # the tiny models are 32 wide
    read["paper"]["calibration"] = {"draws": 100, "min_group": 10}
    read["paper"]["directions"]["random"] = 20
    for name, path in paths.items():
        path.write_text(yaml.safe_dump(read[name], sort_keys=False))
    home = {"HF_ENDPOINT": hub.url, "HF_HOME": str(root / "hf"), "NO_PROXY": "*", "HF_TOKEN": ""}
    home["LAYERCAL_CACHE"] = str(root / "cache")
    done = snakemake(folder, *PAPER, **home)
    hub.stop()
    assert done.returncode == 0, done.said
    return folder


@pytest.mark.parametrize("model", FAMILIES)
def test_every_model_is_studied_by_category(paper, model):
    manifest = json.loads((paper / f"resources/models/{model}/manifest.json").read_text())
    registry = yaml.safe_load((paper / "config/models.yaml").read_text())
    assert manifest["source"]["hub"] == registry[model]["hub"]
    metrics = pd.read_parquet(paper / f"results/paper/lens/{model}/mmlu/metrics.parquet")
    accuracy = metrics.query("metric == 'accuracy' and lens == 'logit' and value.notna()")
    expected = {"all": 44} | {f"category:{name}": 11 for name in SUBJECTS}
    expected |= {f"subject:{name}": 11 for name in SUBJECTS.values()}
    assert accuracy.groupby("group")["n"].first().to_dict() == expected
    assert set(accuracy["layer"]) == set(range(6))
    page = (paper / f"reports/rendered/paper/{model}/mmlu.html").read_text()
    phase = json.loads((paper / f"results/paper/lens/{model}/mmlu/phase.json").read_text())
    assert phase["reason"] in page and manifest["source"]["hub"]["repo"] in page
    assert "Traceback" not in page


def test_the_four_models_are_told_apart(paper):
    """Four architectures and four lenses: no two give the same logits."""
    tables = [
        pd.read_parquet(paper / f"results/paper/lens/{model}/mmlu/options.parquet")["logit_A"]
        for model in ("phi-2", "llama-2-7b", "mistral-7b")
    ]
    for one, other in itertools.pairwise(tables):
        assert (one - other).abs().max() > 0.1


def test_the_four_models_are_compared_two_by_two(paper):
    """On the same questions, in one table that the atlas shows."""
    compared = pd.read_parquet(paper / "results/paper/lens/comparisons.parquet")
    pairs = compared[["model_a", "model_b"]].drop_duplicates().to_numpy().tolist()
    assert pairs == [list(pair) for pair in itertools.combinations(FAMILIES, 2)]
    assert (compared["n"] == 44).all()
    for end in ("a", "b"):
        for (model, metric), row in compared.groupby([f"model_{end}", "metric"]):
            table = pd.read_parquet(paper / f"results/paper/lens/{model}/mmlu/metrics.parquet")
            last = table.query("layer == layer.max() and `group` == 'all' and lens == 'logit'")
            known = last[last["primary"] & last["metric"].eq(metric)]["value"]
            assert metric == "correction" or row[f"value_{end}"].unique() == pytest.approx(known)
    page = (paper / "reports/rendered/paper/atlas.html").read_text()
    assert "Models on the same questions (6)" in page
