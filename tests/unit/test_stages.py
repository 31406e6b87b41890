"""Stages: their signatures and command lines, and one clear message for bad input."""

import inspect
import json
import logging
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import word_tokenizer
from families import tiny
from scipy.special import softmax

from layercal import InputError, code, results, stages
from layercal.stages import __main__ as command_line
from layercal.stages.ablate_blocks import ablate_blocks
from layercal.stages.ablate_neurons import ablate_neurons
from layercal.stages.average_parts import average_parts
from layercal.stages.evaluate_steering import evaluate_steering
from layercal.stages.extract_residuals import extract_residuals
from layercal.stages.fetch_questions import fetch_questions
from layercal.stages.fit_directions import fit_directions
from layercal.stages.measure_blocks import measure_blocks
from layercal.stages.measure_calibration import measure_calibration
from layercal.stages.measure_null_space import measure_null_space
from layercal.stages.measure_recalibration import measure_recalibration
from layercal.stages.read_lens import read_lens
from layercal.stages.steer_prompts import steer_prompts
from layercal.stages.tokenize_prompts import tokenize_prompts


def run(name, *arguments, log):
    """Run a stage on a command line, where it must fail; return its exit status and its log."""
    with pytest.raises(SystemExit) as stopped:
        command_line.main([name, *map(str, arguments), "--log", str(log)])
    logging.shutdown()
    return stopped.value.code, log.read_text()


@pytest.mark.parametrize("name", code.stages())
def test_help(name, capsys):
    with pytest.raises(SystemExit, match="0"):
        command_line.main([name, "--help"])
    said = capsys.readouterr().out
    assert f"python -m layercal.stages {name}" in said
    assert "--log" in said


@pytest.mark.parametrize("name", code.stages())
def test_a_signature_is_read_as_python_reads_it(name):
    """Rules and the command line are made from it without importing what a stage imports."""
    signature = inspect.signature(stages.function(name)).parameters.values()
    empty = inspect.Parameter.empty
    assert [(each.name, each.annotation, each.default is empty) for each in signature] == [
        (each.name, each.annotation, each.required) for each in code.parameters(name)
    ]
    assert {each.kind for each in signature} == {inspect.Parameter.KEYWORD_ONLY}
    assert {each.kind for each in code.parameters(name)} <= set(command_line.READ)
    assert stages.function(name).__doc__


def test_a_command_line_is_handed_over_as_the_signature_says(tmp_path):
    given = {"prompt": "two words", "limit": "None", "seed": "-1", "manifest": "m.json"}
    given |= {"questions": "q", "prompts": "p"}
    arguments = [part for name, text in given.items() for part in (f"--{name}", text)]
    read = vars(command_line.parser("tokenize_prompts").parse_args(arguments))
    assert read == {
        **{"prompt": "two words", "limit": None, "seed": -1},
        **{name: Path(given[name]) for name in ("manifest", "questions", "prompts")},
    }
    arguments = ["--alphas", "-1", "0.5", "--modes", "--entry", "{'a': [1, None]}"]
    # lists, an empty one among them, and what a registry says
    steer, fetch = map(command_line.parser, ("steer_prompts", "fetch_model"))
    for parser in (steer, fetch):
        for action in parser._actions:
            action.required = False
    assert vars(steer.parse_args(arguments[:4])) == {"alphas": [-1, 0.5], "modes": []}
    assert vars(fetch.parse_args(arguments[4:])) == {"entry": {"a": [1, None]}}


def test_an_unknown_stage_is_named():
    with pytest.raises(SystemExit, match="stages: ablate_blocks, ablate_neurons, average_parts, "):
        command_line.main(["lenses"])


def test_bad_input_is_one_message(tmp_path):
    out, entry = tmp_path / "mine.parquet", {"file": f"{tmp_path}/none.csv"}
    arguments = ["--questions", "mine", "--entry", entry, "--table", out]
    arguments += ["--rejected", tmp_path / "left.csv"]
    said = run("fetch_questions", *arguments, log=tmp_path / "logs/stage.log")
    assert said == (1, f"error: {tmp_path}/none.csv: there is no such file\n")
    assert not out.exists()


def test_unexpected_errors_are_told_apart(tmp_path):
    # an entry of no source, which the workflow refuses before any job
    arguments = ["--model", "x", "--entry", {}, "--manifest", tmp_path / "m"]
    status, said = run("fetch_model", *arguments, log=tmp_path / "stage.log")
    assert status == 2
    assert said.startswith("unexpected error:\nTraceback")


INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)"


@pytest.mark.parametrize(
    ("code", "logged"),
    [
        (INTERRUPT, None),
        (
            "from layercal.stages.__main__ import run; from pathlib import Path;"
            f"stages.function = lambda name: lambda: {INTERRUPT};"
            "run('read_lens', {}, Path(sys.argv[-1]))",
            "interrupted\n",
        ),
    ],
    ids=["while libraries are imported", "in a stage"],
)
def test_an_interrupt_needs_no_traceback(tmp_path, code, logged):
    code = f"import os, signal, sys; from layercal import stages; {code}"
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


def fetch(folder, name="own.jsonl"):
    """Read a question file into own.parquet, and what is to be noted of it into left.csv."""
    fetch_questions(
        questions="own",
        entry={"file": str(folder / name)},
        table=folder / "own.parquet",
        rejected=folder / "left.csv",
    )


def test_mixed_questions_through_all_stages(model_folder, tmp_path):
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
    table, prompts = tmp_path / "own.parquet", out / "prompts.parquet"
    residuals, vectors = out / "residuals.safetensors", out / "directions.safetensors"
    options, tuned, phase = out / "options.parquet", out / "tuned.parquet", out / "phase.json"
    read = {"manifest": model_folder / "manifest.json", "prompts": prompts}
    model = {**read, "dtype": "float32", "device": "cpu"}
    few = {"seed": 0, "draws": 100}
    fetch(tmp_path)
    tokenize_prompts(manifest=read["manifest"], questions=table, shots=2, prompts=prompts)
    extract_residuals(**model, residuals=residuals)
    read_lens(**model, residuals=[residuals], folds=3, options=options, tuned=tuned)
    measure_calibration(
        prompts=prompts,
        options=options,
        tuned=tuned,
        n_bins=[10],
        min_count=[1],
        min_group=10,
        **few,
        metrics=out / "metrics.parquet",
        phase=phase,
        phases=out / "phases.parquet",
        numbers=out / "numbers.json",
        curves=out / "curves.csv",
    )
    by_group = pd.read_parquet(out / "phases.parquet")
    assert {"all", "language:de", "language:th"} < set(by_group["group"])
    assert not by_group["group_kind"].eq("subject").any() and set(by_group["lens"]) == {
        "logit",
        "tuned",
    }
    row = by_group.query("group == 'all' and lens == 'logit'").iloc[0]
    assert row["correction"] == json.loads(phase.read_text())["correction"]
    left = {
        "recalibration": out / "recalibration.parquet",
        "phase": out / "recalibrated-phase.json",
    }
    measure_recalibration(prompts=prompts, options=options, folds=3, **few, **left)
    reached = {"phase": phase, "dimensions": out / "dimensions.parquet"}
    fit_directions(
        **model,
        residuals=[residuals],
        options=options,
        **reached,
        estimators=["update-mean", "phase-pca", "gradient", "probe"],
        ranks=[1, 2],
        random=7,
        null_rule="k=3",
        sources=["tiny/other"],
        source_prompts=[prompts],
        source_residuals=[residuals],
        folds=3,
        draws=100,
        vectors=vectors,
        table=out / "directions.parquet",
    )
    steer_prompts(
        **model,
        residuals=residuals,
        shard=0,
        directions=vectors,
        alphas=[0.0, 1.0],
        modes=["lens", "through-network"],
        logits=out / "logits.safetensors",
    )
    evaluate_steering(
        prompts=prompts,
        directions=vectors,
        logits=[out / "logits.safetensors"],
        alphas=[0.0, 1.0],
        **reached,
        **few,
        min_group=10,
        sweep=out / "sweep.parquet",
        summary=out / "summary.json",
    )
    space = {**model, "residuals": [residuals], "rules": ["energy=0.9", "k=3"]}
    measure_null_space(**space, table=out / "nullspace.parquet")
    ablate_neurons(**space, n_neurons=4, random=5, **few, table=out / "neurons.parquet")
    means, parts = out / "means.safetensors", out / "blocks-0.safetensors"
    average_parts(prompts=prompts, residuals=[residuals], means=means)
    ablate_blocks(**model, residuals=residuals, means=means, phase=phase, shard=0, logits=parts)
    measure_blocks(prompts=prompts, logits=[parts], **few, table=out / "blocks.parquet")

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
    recalibrated = pd.read_parquet(left["recalibration"]).query("recalibration == 'none'")
    recalibrated = recalibrated.set_index(["layer", "metric"])["value"]
    assert recalibrated[final["layer"].iloc[0], "ece"] == pytest.approx(last["ece"])
    assert json.loads(left["phase"].read_text())["n"] == len(made)
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
    ablated = pd.read_parquet(out / "blocks.parquet")
    blocks = range(min(reached + 1, layers), layers + 1)
    named = [f"{part} {block}" for block in blocks for part in ("attention", "mlp")]
    assert ablated["without"].tolist() == named
    by_rank = pd.read_parquet(out / "dimensions.parquet")
    ranks = by_rank["rank"].unique()
    assert by_rank["source"].unique().tolist() == ["own", "mean", "another's"]
    # 32 rows, copies of 16 clusters: a fit without the largest of 3 folds has 20 of them
    assert ranks.tolist() == [0, 1, 2, 4, 8, 16, 20]
    shares = pd.read_parquet(out / "nullspace.parquet")
    assert shares["share"].between(0, 1).all() and set(shares["rule"]) == {"energy=0.9", "k=3"}
    neurons = pd.read_parquet(out / "neurons.parquet")
    assert neurons["without"].nunique() == 4 + 1 + 5 and set(neurons["norm"]) == {"live", "frozen"}
    for table in (neurons, ablated):  # both start from what the lens reads at the last layer
        before, ece = table["ece_before"].unique(), phase_found["ece_final"]
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
def test_prompts_that_the_model_cannot_take_are_named(model_folder, tmp_path, setting, message):
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps(config | setting))
    (tmp_path / "own.jsonl").write_text(
        "".join(
            json.dumps({"question": text, "choices": ["1", "2"], "answer": "A"}) + "\n"
            for text in ("short?", "x" * 60)
        )
    )
    fetch(tmp_path)
    arguments = ["--manifest", model_folder / "manifest.json"]
    arguments += ["--questions", tmp_path / "own.parquet", "--prompts", tmp_path / "p.parquet"]
    status, said = run("tokenize_prompts", *arguments, log=tmp_path / "log")
    assert status == 1
    assert message in said


def test_questions_of_one_order_are_noted_and_kept_in_it(model_folder, tmp_path, caplog):
    """Rotated, "both A and B" would name other options, and equal ones would trade places."""
    plain = [("Why?", list("wxyz")), ("How?", list("stuv"))]
    fixed = [("Two?", ["1", "2", "both A and B", "4"]), ("Same?", ["1", "2", "1", "3"])]
    (tmp_path / "own.jsonl").write_text(
        "".join(
            json.dumps({"question": text, "choices": choices, "answer": "B"}) + "\n"
            for text, choices in (*plain, *fixed)
        )
    )
    table, left, prompts = (tmp_path / name for name in ("own.parquet", "left.csv", "p.parquet"))
    fetch(tmp_path)
    noted = pd.read_csv(left)
    assert noted["where"].tolist() == ["own/3", "own/4"] and noted["kept"].all()
    assert noted["reason"].tolist() == [
        "option C refers to others by place or letter: both A and B",
        "options A and C are equal",
    ]
    given = {"manifest": model_folder / "manifest.json", "questions": table, "prompts": prompts}
    with caplog.at_level("INFO", "layercal"):
        tokenize_prompts(**given, option_order="cyclic")
    assert "2 question(s) keep their order: own/3, own/4" in caplog.text
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


def test_prompts_are_written_as_they_read(model_folder, tmp_path):
    """Without the marks of what is text in them, and without its control tokens."""
    tokenizer = word_tokenizer(" ABCDE")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.save_pretrained(model_folder)
    (tmp_path / "own.csv").write_text("question,A,B,answer\nBold <s>?,<s>,<b>,A\nBold?,x,y,B\n")
    table, prompts = tmp_path / "own.parquet", tmp_path / "prompts.parquet"
    fetch(tmp_path, "own.csv")
    given = {"manifest": model_folder / "manifest.json", "questions": table, "prompts": prompts}
    tokenize_prompts(**given)
    made = pd.read_parquet(prompts)
    assert made["prompt"][0].endswith("Bold <s>?\nA. <s>\nB. <b>\nAnswer:")
    assert not any(tokenizer.bos_token_id in ids for ids in made["input_ids"])
    read = "".join(tokenizer.convert_ids_to_tokens(made["input_ids"][0].tolist()))
    assert read.replace("Ġ", " ").replace("Ċ", "\n") == made["prompt"][0]


def test_models_that_differ_in_quantization_alone_are_two_runs(model_folder, tmp_path):
    (tmp_path / "own.jsonl").write_text('{"question": "q", "choices": ["1", "2"], "answer": "A"}\n')
    fetch(tmp_path)
    told = set()
    for quantize in ({}, {"quantize": "8bit"}, {"quantize": "4bit"}):
        manifest, prompts = model_folder / "manifest.json", tmp_path / "prompts.parquet"
        manifest.write_text(json.dumps({"files": {}, "source": quantize}))
        tokenize_prompts(manifest=manifest, questions=tmp_path / "own.parquet", prompts=prompts)
        told.add(results.Run.load(prompts).fingerprint)
    assert len(told) == 3


def test_a_tokenizer_runs_code_only_if_the_manifest_trusts_it(model_folder, tmp_path):
    path = model_folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    (model_folder / "mine.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        "class Mine(PreTrainedTokenizerFast):\n    pass\n"
    )
    (tmp_path / "own.jsonl").write_text('{"question": "q", "choices": ["1", "2"], "answer": "A"}\n')
    fetch(tmp_path)
    given = {"manifest": model_folder / "manifest.json", "questions": tmp_path / "own.parquet"}
    given |= {"prompts": tmp_path / "prompts.parquet"}
    with pytest.raises(InputError, match="custom code"):
        tokenize_prompts(**given)
    given["manifest"].write_text('{"files": {}, "trust_remote_code": true}')
    tokenize_prompts(**given)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"folds": 3}, "2 question(s), copies and translations aside, cannot be split into 3"),
        ({"min_group": 5}, "4 question(s) are fewer than the 5 that calibration: min_group"),
    ],
)
def test_too_few_questions_are_said_first(asked, said, tmp_path):
    """Before the model is read; translations of a question are one to fit on."""
    rows = [
        {"question": f"{language} {n}?", "choices": ["1", "2"], "answer": "A"}
        | {"language": language, "cluster": str(n)}
        for language in ("de", "th")
        for n in range(2)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fetch(tmp_path)
    given = {"manifest": tmp_path / "no model/manifest.json", "prompts": tmp_path / "p.parquet"}
    with pytest.raises(InputError, match=re.escape(said)):
        tokenize_prompts(**given, questions=tmp_path / "own.parquet", **asked)
    assert not given["prompts"].exists()
