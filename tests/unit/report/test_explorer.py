"""What the interactive page holds, and which files it refuses."""

import json

import numpy as np
import pandas as pd
import pytest

from layercal import InputError
from layercal.metrics import calibration, readings
from layercal.report import explorer

LAYERS, N, ALPHAS = 3, 40, [0, 1]
SETTINGS = {"n_bins": [10], "min_count": [1], "draws": 20, "seed": 0}
TEMPLATE = "{{ data }}"


@pytest.fixture
def study(rng):
    """Files of one pair, as arguments of explorer.pair, and its question table."""
    logits = rng.normal(size=(N, LAYERS, 4))
    ids = [f"q/{index}" for index in range(N)]
    answer = rng.integers(0, 4, N)
    groups = {"category": np.where(np.arange(N) < 35, "big", "small"), "subject": "s"}
    prompts = pd.DataFrame(
        {"question_id": ids, "answer": answer, "language": "en", "flag": "", **groups}
    )
    prompts["permutation"] = 0
    options = pd.DataFrame(logits.reshape(-1, 4), columns=[f"logit_{one}" for one in "ABCD"])
    options = options.assign(
        question_id=np.repeat(ids, LAYERS),
        permutation=0,
        layer=np.tile(range(LAYERS), N),
        answer=np.repeat(answer, LAYERS),
        option_mass=1.0,
        entropy=1.0,
    )
    read = readings.from_options(options)["as-is"]
    metrics = readings.group_table(read, readings.groups(prompts), 30, **SETTINGS)
    steered = rng.normal(size=(1, 1, len(ALPHAS), N, 4))
    texts = prompts.assign(question="<script>?", choices=[list("wxyz")] * N)
    files = {
        "model": "m",
        "questions": "q",
        "prompts": prompts,
        "options": options,
        "metrics": metrics.assign(
            lens="logit", order="as-is", primary=metrics["n_bins"].isin([0, 10])
        ),
        "phase": {"order": "as-is", "peak_layer": 1, "reason": "none"},
        "sweep": sweep(readings.Readings(steered[0, 0], answer, {})),
        "steered": {"lens": steered},
    }
    return files, explorer.ask(texts)


def sweep(read):
    """Rows of sweep.parquet at one layer."""
    values = {
        "ece": calibration.ece(read.confidence, read.correct),
        "accuracy": read.correct.mean(-1),
        "confidence": read.confidence.mean(-1),
    }
    setting = {"mode": "lens", "direction": "update-mean", "layer": 2, "ci_low": 0, "ci_high": 1}
    rows = [
        {**setting, "alpha": alpha, "metric": metric, "value": value[place]}
        for place, alpha in enumerate(ALPHAS)
        for metric, value in values.items()
    ]
    return pd.DataFrame(rows)


def test_bins_give_the_ece_shown(study):
    files, _ = study
    made = explorer.pair(**files)
    labels = [one["label"] for one in made["readings"]]
    assert labels == ["logit lens", "steered, read at the steered layer"]
    metrics = files["metrics"].query("metric == 'ece'").set_index(["group", "layer"])["value"]
    for group, block in made["readings"][0]["groups"].items():
        for layer in range(LAYERS):
            bins = {name: np.array(one[layer], float) for name, one in block["bins"].items()}
            gaps = bins["count"] * np.abs(bins["accuracy"] - bins["confidence"])
            shown = block["numbers"]["ece"][layer][0]
            assert shown == pytest.approx(metrics[group, layer])
            assert np.nansum(gaps) / bins["count"].sum() == pytest.approx(shown, abs=1e-4)
    assert [one["name"] for one in made["groups"] if not one["measured"]] == ["category:small"]


def test_flow_and_moves_count_every_question_once(rng):
    before, after = rng.integers(0, 4, (2, 5, 50))
    answer = rng.integers(0, 4, 50)
    cells = np.array(explorer.flow(before, after, 4)).reshape(5, 4, 4)
    found = explorer.moves(before, after, answer)
    for step in range(5):
        counted = np.zeros((4, 4))
        np.add.at(counted, (before[step], after[step]), 1)
        assert (cells[step] == counted).all()
        assert sum(found[step]) == 50
        assert found[step][0] + found[step][2] == (before[step] == answer).sum()
        assert found[step][0] + found[step][1] == (after[step] == answer).sum()


def test_a_page_too_large_is_thinned(study, monkeypatch):
    files, texts = study
    one = explorer.pair(**files)
    full = explorer.page([one], {"q": texts}, TEMPLATE, "")
    whole = json.loads(full)
    assert "<script>" not in full and whole["texts"]["q"]["q/0"]["question"] == "<script>?"
    assert len(whole["pairs"][0]["ids"]) == len(whole["texts"]["q"]) == N
    library = len(explorer.vl_convert.javascript_bundle())
    for spare in (1000, 2000):
        monkeypatch.setattr(explorer, "LIMIT", library + len(full) - spare)
        less = explorer.page([one], {"q": texts}, TEMPLATE, "")
        kept = json.loads(less)["pairs"][0]
        assert len(less) <= explorer.LIMIT - library + 500  # names of columns
        assert 0 < len(kept["ids"]) == len(kept["chosen"]) < kept["asked"] == N
        assert kept["readings"] == whole["pairs"][0]["readings"]  # measured on all questions


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "options",
            lambda t: t.iloc[LAYERS:],
            "m on q: options.parquet holds other",
        ),
        ("metrics", lambda t: t.assign(value=t["value"] / 2), "logit lens: the readings give"),
        ("sweep", lambda t: t.assign(value=t["value"] / 2), "steered, read at the steered layer:"),
    ],
)
def test_files_of_different_runs_are_refused(study, name, change, message):
    files, _ = study
    with pytest.raises(InputError, match=message):
        explorer.pair(**{**files, name: change(files[name])})


def test_a_question_without_text_is_refused(study):
    files, texts = study
    del texts["q/7"]
    with pytest.raises(InputError, match="q: the question table lacks 'q/7'"):
        explorer.page([explorer.pair(**files)], {"q": texts}, TEMPLATE, "")
