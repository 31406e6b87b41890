"""Command lines of the stages: help, and one clear message for bad input."""

import importlib
import json
import logging
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, word_tokenizer
from families import tiny
from scipy.special import softmax

NAMES = sorted(path.stem for path in (ROOT / "src/layercal/stages").glob("[a-z]*.py"))


def run(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"layercal.stages.{name}").main()
    logging.shutdown()
    return stopped.value.code


@pytest.mark.parametrize("name", NAMES)
def test_help(name, monkeypatch, capsys):
    assert run(name, monkeypatch, "--help") == 0
    said = capsys.readouterr().out
    assert f"python -m layercal.stages.{name}" in said
    assert "--log" in said


def test_bad_input_is_one_message(monkeypatch, tmp_path):
    registry, log = tmp_path / "questions.yaml", tmp_path / "logs/stage.log"
    registry.write_text(f"mine: {{file: {tmp_path}/none.csv}}\n")
    out = tmp_path / "mine.parquet"
    arguments = ["--questions", "mine", "--registry", registry, "--out", out]
    arguments += ["--rejected", tmp_path / "left.csv", "--log", log]
    assert run("fetch_questions", monkeypatch, *arguments) == 1
    assert log.read_text() == f"error: {tmp_path}/none.csv: there is no such file\n"
    assert not out.exists()


def test_unexpected_errors_are_told_apart(monkeypatch, tmp_path):
    log = tmp_path / "stage.log"
    registry = tmp_path / "models.yaml"
    registry.write_text("x: no entry\n")  # which the workflow refuses before any job
    arguments = ["--model", "x", "--registry", registry, "--manifest", tmp_path / "m", "--log", log]
    assert run("fetch_model", monkeypatch, *arguments) == 2
    assert log.read_text().startswith("unexpected error:\nTraceback")


INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize(
    ("code", "logged"),
    [
        (INTERRUPT, None),
        (
            f"stages.run(lambda args: {INTERRUPT}, stages.parser('x', ''))",
            "interrupted\n",
        ),
    ],
    ids=["while libraries are imported", "in a stage"],
)
def test_an_interrupt_needs_no_traceback(tmp_path, code, logged):
    code = f"import os, signal; from layercal import stages; {code}"
    log = tmp_path / "log"
    command = [sys.executable, "-c", code, "--log", str(log)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == -signal.SIGINT
    assert done.stdout + done.stderr == ""
    assert (log.read_text() if log.exists() else None) == logged


@pytest.fixture
def model_folder(tmp_path):
    """A tiny model whose tokenizer has one token for each of ' A' .. ' E'."""
    folder, tokenizer = tmp_path / "model", word_tokenizer(" ABCDE")
    made = tiny("llama", vocab_size=len(tokenizer), max_position_embeddings=1024)
    made.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "manifest.json").write_text('{"files": {}}')
    return folder


def stage(name, monkeypatch, **options):
    """Run a stage that must succeed; lists are options of several values."""
    arguments = [name]
    for option, value in options.items():
        values = value if isinstance(value, list) else [value]
        arguments += [f"--{option.replace('_', '-')}", *map(str, values)]
    monkeypatch.setattr(sys, "argv", arguments)
    importlib.import_module(f"layercal.stages.{name}").main()


def test_mixed_questions_through_all_stages(model_folder, monkeypatch, tmp_path):
    """2 to 5 options, two languages, two shots: each question is read over its own options."""
    rows = [
        {
            "question_id": f"{language}/{i}",
            "cluster": str(i),
            "language": language,
            "subject": "s",
            "question": f"{language} {i}?",
            "choices": list("vwxyz")[: 2 + i % 4],
            "answer": "AB"[i % 2],
        }
        for language in ("de", "th")
        for i in range(16)
    ]
    own, out = tmp_path / "own.jsonl", tmp_path / "out"
    own.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "questions.yaml").write_text(f"own: {{file: {own}}}\n")
    table, prompts = out / "own.parquet", out / "prompts.parquet"
    residuals, vectors = out / "residuals.safetensors", out / "directions.safetensors"
    options, tuned, phase = out / "options.parquet", out / "tuned.parquet", out / "phase.json"
    read = {"manifest": model_folder / "manifest.json", "prompts": prompts}
    model = {**read, "dtype": "float32", "device": "cpu"}
    few = {"seed": 0, "draws": 100}
    stage(
        "fetch_questions",
        monkeypatch,
        questions="own",
        registry=tmp_path / "questions.yaml",
        out=table,
        rejected=out / "left.csv",
    )
    stage("prompts", monkeypatch, manifest=read["manifest"], questions=table, shots=2, out=prompts)
    stage("extract", monkeypatch, **model, shard=0, out=residuals)
    stage("lens", monkeypatch, **model, residuals=residuals, folds=3, out=options, tuned=tuned)
    stage(
        "metrics",
        monkeypatch,
        prompts=prompts,
        options=options,
        tuned=tuned,
        min_group=10,
        **few,
        out=out / "metrics.parquet",
        phase=phase,
        numbers=out / "numbers.json",
        curves=out / "curves.csv",
    )
    fitted = {"estimators": ["update-mean", "phase-pca", "gradient", "probe"], "ranks": [1, 2]}
    reached = {"phase": phase, "dimensions": out / "dimensions.parquet"}
    stage(
        "directions",
        monkeypatch,
        **model,
        residuals=residuals,
        options=options,
        **reached,
        **fitted,
        random=7,
        null_rule="k=3",
        sources="tiny/other",
        source_prompts=prompts,
        source_residuals=residuals,
        folds=3,
        draws=100,
        out=vectors,
        table=out / "directions.parquet",
    )
    stage(
        "steer",
        monkeypatch,
        **model,
        residuals=residuals,
        shard=0,
        directions=vectors,
        alphas=[0, 1],
        modes=["lens", "through-network"],
        out=out / "logits.safetensors",
    )
    stage(
        "sweep",
        monkeypatch,
        prompts=prompts,
        directions=vectors,
        logits=out / "logits.safetensors",
        alphas=[0, 1],
        **reached,
        **fitted,
        **few,
        min_group=10,
        out=out / "sweep.parquet",
        summary=out / "summary.json",
    )

    stage(
        "nullspace",
        monkeypatch,
        **model,
        residuals=residuals,
        rules=["energy=0.9", "k=3"],
        neurons=4,
        random=5,
        **few,
        shares=out / "nullspace.parquet",
        out=out / "neurons.parquet",
    )

    made = pd.read_parquet(prompts)
    assert (made["n_shots"] == 2).all()
    assert made["prompt"].str.count("Answer: ").eq(2).all()
    for row in made.itertuples():  # shots of the same language, never a form of the question
        assert row.prompt.count(f"\n{row.language} ") == 3
        assert row.prompt.count(f" {row.cluster}?") == 1
    final = pd.read_parquet(options).query("layer == layer.max()")
    logits = final[[f"logit_{letter}" for letter in "ABCDE"]].to_numpy()
    counts = made["option_ids"].map(len).to_numpy()
    np.testing.assert_array_equal((logits > -np.inf).sum(1), counts)
    p = [softmax(row[:count]) for row, count in zip(logits, counts, strict=True)]
    metrics = pd.read_parquet(out / "metrics.parquet").query("lens == 'logit'")
    assert {"language:de", "language:th"} < set(metrics["group"])
    last = metrics[(metrics["group"] == "all") & (metrics["layer"] == metrics["layer"].max())]
    last = last.set_index("metric")["value"]
    assert last["confidence"] == pytest.approx(np.mean([one.max() for one in p]))
    chance = np.mean(1 / counts)
    assert last["chance"] == pytest.approx(chance)
    # of equally many options, every question may have every other one's answer
    alike = pd.DataFrame({"named": logits.argmax(1), "right": made["answer"].to_numpy()}).groupby(
        [counts, made["language"].to_numpy()]
    )
    hits = sum(np.equal.outer(*one.to_numpy().T).sum() / len(one) for _, one in alike)
    assert json.loads(phase.read_text())["chance"] == pytest.approx(hits / len(counts))
    steered = pd.read_parquet(out / "sweep.parquet")
    unsteered = steered.query("alpha == 0 and mode == 'through-network' and metric == 'confidence'")
    np.testing.assert_allclose(unsteered["value"], last["confidence"], atol=1e-6)
    same = metrics[(metrics["group"] == "all") & metrics["n_bins"].isin([0, 10])]
    same = same.set_index(["layer", "metric"])["value"]
    read = steered.query("alpha == 0 and mode == 'lens' and direction == 'update-mean'")
    for row in read.itertuples():  # one value for one quantity, wherever it stands
        assert row.value == pytest.approx(same[row.layer, row.metric], abs=1e-6), row
    summary = json.loads((out / "summary.json").read_text())
    groups = {row["group"] for row in summary["verdicts"]}
    assert groups == {"all", "language:de", "language:th"}
    kinds = {row["direction"]: row["kind"] for row in summary["verdicts"]}
    assert kinds["phase-pca-2"] == "estimator" and kinds["middle-mean-0.25"] == "control"
    assert kinds["update-mean from tiny/other"] == "transfer"
    # fitted on the very questions, with the same left out, it is the direction itself
    modes = {row["direction"]: [] for row in summary["verdicts"]}
    for row in summary["verdicts"]:
        modes[row["direction"]].append(row["mode"])
        assert row["kind"] == "baseline" or row["controls"] == 7
    assert set(modes["update-mean (rotate)"]) == {"through-network"}
    both = steered[steered["direction"].str.startswith("update-mean")].pivot_table(
        "value", ["mode", "layer", "alpha", "metric"], "direction"
    )
    np.testing.assert_array_equal(both["update-mean"], both["update-mean from tiny/other"])
    assert "update-mean (null-space part)" in kinds
    layers = final["layer"].iloc[0]
    phase_found = json.loads(phase.read_text())
    reached = phase_found["peak_layer"]
    named = [row["without"] for row in summary["attribution"]]
    blocks = range(min(reached + 1, layers), layers + 1)
    assert named == [f"{part} {block}" for block in blocks for part in ("attention", "mlp")]
    by_rank = pd.read_parquet(out / "dimensions.parquet")
    ranks = by_rank["rank"].unique()
    assert by_rank["source"].unique().tolist() == ["own", "mean", "another's"]
    # 32 rows, copies of 16 clusters: a fit without the largest of 3 folds has 20 of them
    assert ranks.tolist() == [0, 1, 2, 4, 8, 16, 20]
    shares = pd.read_parquet(out / "nullspace.parquet")
    assert shares["share"].between(0, 1).all() and set(shares["rule"]) == {"energy=0.9", "k=3"}
    neurons = pd.read_parquet(out / "neurons.parquet")
    assert neurons["without"].nunique() == 4 + 1 + 5 and set(neurons["norm"]) == {"live", "frozen"}
    before, ece = neurons["ece_before"].unique(), phase_found["ece_final"]
    np.testing.assert_allclose(before, ece, atol=1e-4)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"max_position_embeddings": 120},
            "1 prompt(s) do not fit into the model's context of 120",
        ),
        ({"vocab_size": 230}, "its prompt holds 'ĠB', token 257, but the model has 230 embeddings"),
    ],
)
def test_prompts_that_the_model_cannot_take_are_named(
    model_folder, monkeypatch, tmp_path, setting, message
):
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps(config | setting))
    (tmp_path / "own.jsonl").write_text(
        "".join(
            json.dumps({"question": text, "choices": ["1", "2"], "answer": "A"}) + "\n"
            for text in ("short?", "x" * 60)
        )
    )
    (tmp_path / "questions.yaml").write_text(f"own: {{file: {tmp_path}/own.jsonl}}\n")
    table, log = tmp_path / "own.parquet", tmp_path / "log"
    left = tmp_path / "left.csv"
    registry = {"questions": "own", "registry": tmp_path / "questions.yaml"}
    stage("fetch_questions", monkeypatch, **registry, out=table, rejected=left)
    arguments = ["--manifest", model_folder / "manifest.json", "--questions", table]
    arguments += ["--out", tmp_path / "prompts.parquet", "--log", log]
    assert run("prompts", monkeypatch, *arguments) == 1
    assert message in log.read_text()


def test_questions_of_one_order_are_noted_and_kept_in_it(model_folder, monkeypatch, tmp_path):
    """Rotated, "both A and B" would name other options, and equal ones would trade places."""
    plain = [("Why?", list("wxyz")), ("How?", list("stuv"))]
    fixed = [("Two?", ["1", "2", "both A and B", "4"]), ("Same?", ["1", "2", "1", "3"])]
    (tmp_path / "own.jsonl").write_text(
        "".join(
            json.dumps({"question": text, "choices": choices, "answer": "B"}) + "\n"
            for text, choices in (*plain, *fixed)
        )
    )
    (tmp_path / "questions.yaml").write_text(f"own: {{file: {tmp_path}/own.jsonl}}\n")
    table, left, prompts = (tmp_path / name for name in ("own.parquet", "left.csv", "p.parquet"))
    registry = {"questions": "own", "registry": tmp_path / "questions.yaml"}
    stage("fetch_questions", monkeypatch, **registry, out=table, rejected=left)
    noted = pd.read_csv(left)
    assert noted["where"].tolist() == ["own/3", "own/4"] and noted["kept"].all()
    assert noted["reason"].tolist() == [
        "option C refers to others by place or letter: both A and B",
        "options A and C are equal",
    ]
    given = {"manifest": model_folder / "manifest.json", "questions": table, "out": prompts}
    log = tmp_path / "log"
    stage("prompts", monkeypatch, **given, option_order="cyclic", log=log)
    assert "2 question(s) keep their order: own/3, own/4" in log.read_text()
    made = pd.read_parquet(prompts)
    assert made["permutation"].tolist() == [0, 1, 2, 3] * 4
    of = made.groupby("question_id")
    assert of["prompt"].nunique().to_dict() == {"own/1": 4, "own/2": 4, "own/3": 1, "own/4": 1}
    assert of["answer"].unique().map(list).to_dict() == {
        "own/1": [1, 0, 3, 2],
        "own/2": [1, 0, 3, 2],
        "own/3": [1],
        "own/4": [1],
    }


def test_prompts_are_written_as_they_read(model_folder, monkeypatch, tmp_path):
    """Without the marks of what is text in them, and without its control tokens."""
    tokenizer = word_tokenizer(" ABCDE")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.save_pretrained(model_folder)
    (tmp_path / "own.csv").write_text("question,A,B,answer\nBold <s>?,<s>,<b>,A\nBold?,x,y,B\n")
    (tmp_path / "questions.yaml").write_text(f"own: {{file: {tmp_path}/own.csv}}\n")
    table, prompts = tmp_path / "own.parquet", tmp_path / "prompts.parquet"
    registry = {"questions": "own", "registry": tmp_path / "questions.yaml"}
    stage("fetch_questions", monkeypatch, **registry, out=table, rejected=tmp_path / "left.csv")
    given = {"manifest": model_folder / "manifest.json", "questions": table, "out": prompts}
    stage("prompts", monkeypatch, **given)
    made = pd.read_parquet(prompts)
    assert made["prompt"][0].endswith("Bold <s>?\nA. <s>\nB. <b>\nAnswer:")
    assert not any(tokenizer.bos_token_id in ids for ids in made["input_ids"])
    read = "".join(tokenizer.convert_ids_to_tokens(made["input_ids"][0].tolist()))
    assert read.replace("Ġ", " ").replace("Ċ", "\n") == made["prompt"][0]


def test_a_tokenizer_runs_code_only_if_the_manifest_trusts_it(model_folder, monkeypatch, tmp_path):
    path = model_folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    (model_folder / "mine.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        "class Mine(PreTrainedTokenizerFast):\n    pass\n"
    )
    (tmp_path / "own.jsonl").write_text('{"question": "q", "choices": ["1", "2"], "answer": "A"}\n')
    (tmp_path / "questions.yaml").write_text(f"own: {{file: {tmp_path}/own.jsonl}}\n")
    table, log = tmp_path / "own.parquet", tmp_path / "log"
    registry = {"questions": "own", "registry": tmp_path / "questions.yaml"}
    stage("fetch_questions", monkeypatch, **registry, out=table, rejected=tmp_path / "left.csv")
    options = {"manifest": model_folder / "manifest.json", "questions": table}
    options |= {"out": tmp_path / "prompts.parquet"}
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    assert run("prompts", monkeypatch, *arguments, "--log", log) == 1
    assert "custom code" in log.read_text()
    options["manifest"].write_text('{"files": {}, "trust_remote_code": true}')
    stage("prompts", monkeypatch, **options)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--folds", "3"], "2 question(s), copies and translations aside, cannot be split into 3"),
        (["--min-group", "5"], "4 question(s) are fewer than the 5 that calibration: min_group"),
    ],
)
def test_too_few_questions_are_said_first(asked, said, model_folder, monkeypatch, tmp_path):
    """Before the model is read; translations of a question are one to fit on."""
    rows = [
        {"question": f"{language} {n}?", "choices": ["1", "2"], "answer": "A"}
        | {"language": language, "cluster": str(n)}
        for language in ("de", "th")
        for n in range(2)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "questions.yaml").write_text(f"own: {{file: {tmp_path}/own.jsonl}}\n")
    table, log, out = tmp_path / "own.parquet", tmp_path / "log", tmp_path / "prompts.parquet"
    registry = {"questions": "own", "registry": tmp_path / "questions.yaml"}
    stage("fetch_questions", monkeypatch, **registry, out=table, rejected=tmp_path / "left.csv")
    arguments = ["--manifest", tmp_path / "no model/manifest.json", "--questions", table]
    assert run("prompts", monkeypatch, *arguments, "--out", out, "--log", log, *asked) == 1
    assert said in log.read_text() and not out.exists()
