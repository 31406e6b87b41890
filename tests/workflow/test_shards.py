"""Shards are a matter of scheduling: in how many a study is cut changes no result."""

import json

import numpy as np
import pytest
import yaml
from project import small_study, snakemake
from safetensors.numpy import load
from test_faults import contents

PLACES = ("results/lens", "results/directions", "results/steering", "metrics", "plots")
pytestmark = pytest.mark.workflow


def numbers(found):
    """Every number in what JSON holds."""
    if isinstance(found, dict | list):
        inner = found.values() if isinstance(found, dict) else found
        return [number for one in inner for number in numbers(one)]
    return [found] if isinstance(found, float) else []


def test_one_shard_and_eight_give_the_same_tables(tmp_path):
    """Byte for byte where each prompt is a batch; batches of others differ in the last digits."""
    study = small_study(tmp_path / "study", shards=1, batch_tokens=1)
    path, found, attributed = study / "config/config.yaml", [], []
    for shards in (1, 8):
        config = yaml.safe_load(path.read_text())
        config["extract"]["shards"] = shards
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        done = snakemake(study, "steering")
        assert done.returncode == 0, done.said
        tables = contents(study, *PLACES)
        tables = {str(name): one for name, one in tables.items() if "logits-" not in name.name}
        # ablations rest on a mean over all prompts, which is summed shard by shard
        summary = json.loads(tables.pop("results/steering/tiny/own/summary.json"))
        fitted = load(tables.pop("results/directions/tiny/own/directions.safetensors"))
        attributed.append([*numbers(summary.pop("attribution")), *fitted.pop("written").flat])
        vectors = {name: one.tobytes() for name, one in fitted.items()}
        found.append(tables | vectors | {"summary": summary})
    assert (study / "results/extract/tiny/own/residuals-7.safetensors").exists()
    assert {name for name in found[0] if found[0][name] != found[1].get(name)} == set()
    assert found[0].keys() == found[1].keys() and "norms" in found[0] and len(attributed[0]) > 8
    np.testing.assert_allclose(*attributed, atol=1e-3)
