"""A model beside its quantized form, each asked in two ways, in one study."""

import json

import pandas as pd
import pytest
import yaml
from project import snakemake

pytestmark = pytest.mark.workflow
TABLE = "results/bits/lens/comparisons.parquet"


def register(study, registry, **entries):
    path = study / f"config/{registry}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | entries))


def test_quantizations_and_option_orders_are_compared(study):
    own = yaml.safe_load((study / "config/models.yaml").read_text())["tiny"]
    register(study, "models", **{"tiny-8bit": own | {"quantize": "8bit"}})
    register(study, "questions", **{"own-cyclic": {"file": "own.csv", "option_order": "cyclic"}})
    given = ["study=bits", "models=[tiny,tiny-8bit]", "questions=[own,own-cyclic]"]
    done = snakemake(study, TABLE, "--config", *given)
    assert done.returncode == 0, done.said
    table = pd.read_parquet(study / TABLE)
    pairs = table[["model_a", "questions_a", "model_b", "questions_b"]].drop_duplicates()
    assert pairs.to_numpy().tolist() == [
        ["tiny", "own", "tiny", "own-cyclic"],
        ["tiny", "own", "tiny-8bit", "own"],
        ["tiny", "own-cyclic", "tiny-8bit", "own-cyclic"],
        ["tiny-8bit", "own", "tiny-8bit", "own-cyclic"],
    ]
    assert (table["n"] == 24).all()
    by_bits = table[(table["model_a"] != table["model_b"]) & table["metric"].eq("nll")]
    assert by_bits["change"].abs().between(1e-6, 0.1).all()
    files = [
        json.loads((study / f"resources/models/{model}/manifest.json").read_text())["files"]
        for model in ("tiny", "tiny-8bit")
    ]
    assert files[0] == files[1]
