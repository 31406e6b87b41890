"""Shards are a matter of scheduling: in how many a study is cut changes no result."""

import pytest
import yaml
from project import small_study, snakemake
from test_faults import contents

PLACES = (
    "results/embedded/lens",
    "results/embedded/ablation",
    "results/embedded/directions",
    "results/embedded/steering",
    "metrics",
    "plots",
)
CUT = {"residuals": "extract", "blocks": "ablation", "logits": "steering"}
pytestmark = pytest.mark.workflow


def test_one_shard_and_three_give_the_same_tables(tmp_path):
    """Byte for byte."""
    study = small_study(tmp_path / "study")
    path, found = study / "config/config.yaml", []
    for shards in (3, 1):
        config = yaml.safe_load(path.read_text())
        config["extract"]["shards"] = shards
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        done = snakemake(study, "ablation", "steering")
        assert done.returncode == 0, done.said
        # and none is left of another cut
        for kind, place in CUT.items():
            names = {path.name for path in study.glob(f"results/*/{place}/tiny/own/{kind}-*")}
            ends = ("safetensors", "provenance.json")
            assert names == {f"{kind}-{n}.{end}" for n in range(shards) for end in ends}
        tables = contents(study, *PLACES)
        found.append({k: one for k, one in tables.items() if k.name.split("-")[0] not in CUT})
    assert {name for name in found[0] if found[0][name] != found[1].get(name)} == set()
    assert found[0].keys() == found[1].keys() and len(found[0]) > 10
