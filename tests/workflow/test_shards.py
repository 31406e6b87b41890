"""Shards are a matter of scheduling: in how many a study is cut changes no table."""

import pytest
import yaml
from project import small_study, snakemake
from test_faults import contents

TABLES = ("results/lens", "results/directions", "metrics", "plots")
pytestmark = pytest.mark.workflow


def test_one_shard_and_eight_give_the_same_tables(tmp_path):
    study = small_study(tmp_path / "study", shards=1)
    path, found = study / "config/config.yaml", []
    for shards in (1, 8):
        config = yaml.safe_load(path.read_text())
        config["extract"]["shards"] = shards
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        done = snakemake(study, "steering")
        assert done.returncode == 0, done.said
        assert (study / f"results/extract/tiny/own/residuals-{shards - 1}.safetensors").exists()
        steered = {
            name: (study / "results/steering/tiny/own" / name).read_bytes()
            for name in ("sweep.parquet", "summary.json")
        }
        found.append(contents(study, *TABLES) | steered)
    different = [str(name) for name in found[0] if found[0][name] != found[1].get(name)]
    assert not different and found[0].keys() == found[1].keys()
