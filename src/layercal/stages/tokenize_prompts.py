"""Turn questions into tokenized prompts, in the row order that all later tables keep.

Fails before any long work if the option letters are not one token each.
"""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerBase

from layercal import InputError, files
from layercal.model import loading
from layercal.prompts import control_tokens, rotation, templates, tokenizing
from layercal.sources import manifests
from layercal.sources.questions import hash_order, load, scored_and_shots
from layercal.stages import Output, log


def tokenize_prompts(
    *,
    manifest: Path,
    questions: Path,
    prompt: str = "hendrycks",
    shots: int = 0,
    option_order: str = "as-is",
    limit: int | None = None,
    folds: int = 1,
    min_group: int = 1,
    seed: int = 0,
    prompts: Output,
) -> None:
    """Write one row a prompt: identity, answer, tokens and the option tokens."""
    scored, pool = scored_and_shots(load(questions))
    order = hash_order([row["question_id"] for row in scored], seed)
    rows = [scored[row] for row in sorted(order[:limit])]
    _check_number(questions, rows, folds, min_group)
    manifests.restore(manifest)
    tokenizer = loading.tokenizer(manifest.parent, manifests.trusted(manifest))
    template = templates.template(prompt, tokenizer)
    before_rows = templates.choose_shots(rows, pool, shots)
    rotations = rotation.rotations(rows) if option_order == "cyclic" else 1
    shown = [order for row in rows for order in rotation.orders(row, rotations)]
    before = [some for some in before_rows for _ in range(rotations)]
    texts = [template.render(row, some) for row, some in zip(shown, before, strict=True)]
    n_options = [len(row["choices"]) for row in shown]
    input_ids, option_ids = templates.tokenize(
        tokenizer, texts, n_options, template.lead, template.add_special_tokens
    )
    _check_fit(manifest.parent, shown, input_ids, option_ids, tokenizer)
    identity = ["question_id", "cluster", "language", "subject", "category", "flag", "answer"]
    written = pd.DataFrame(shown)[identity].assign(
        permutation=list(range(rotations)) * len(rows),
        model_sha256=_model(manifest),
        n_shots=[len(some) for some in before],
        n_tokens=[len(ids) for ids in input_ids],
        prompt=[control_tokens.unmarked(text) for text in texts],
        input_ids=input_ids,  # type: ignore[arg-type] # lists are cells, too
        option_ids=option_ids,  # type: ignore[arg-type] # the same
    )
    files.write_atomically(prompts, written.to_parquet(index=False))
    log.info(
        "%d prompts, %d tokens, options %s",
        len(shown),
        written["n_tokens"].sum(),
        tokenizer.convert_ids_to_tokens(max(option_ids, key=len)),
    )
    tokenizing.log_beginnings(tokenizer, input_ids)
    fixed = [row["question_id"] for row in rows if rotations > 1 and rotation.fixed(row)]
    if fixed:
        log.info("%d question(s) keep their order: %s", len(fixed), ", ".join(fixed))
    few = sum(len(some) < shots for some in before_rows)
    if few:
        log.info("%d question(s) have fewer shots: their subjects hold no more", few)


def _model(manifest: Path) -> str:
    """Digest of a model's files and quantization: models of one tokenizer have the same prompts."""
    listed, quantize = json.loads(manifest.read_text())["files"], manifests.quantization(manifest)
    listed |= {"quantize": quantize} if quantize else {}
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def _check_number(questions: Path, rows: list[dict], folds: int, min_group: int) -> None:
    """Refuse now what later stages could not do, before any long work."""
    clusters = len({row["cluster"] for row in rows})
    if clusters < folds:
        raise InputError(
            f"{questions}: {clusters} question(s), copies and translations aside, cannot be "
            f"split into {folds} folds; lower folds in the config or study more questions"
        )
    if len(rows) < min_group:
        raise InputError(
            f"{questions}: {len(rows)} question(s) are fewer than the {min_group} that "
            "calibration: min_group asks for; lower it in the config or study more questions"
        )


def _check_fit(
    folder: Path,
    shown: list[dict],
    input_ids: list[list[int]],
    option_ids: list[list[int]],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Refuse tokens that the model has no embedding of, and prompts longer than its context."""
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
    rows = config.get("vocab_size", math.inf)
    for row, ids, options in zip(shown, input_ids, option_ids, strict=True):
        last = max(*ids, *options)
        if last >= rows:
            token = tokenizer.convert_ids_to_tokens(last)
            raise InputError(
                f"{row['question_id']}: its prompt holds {token!r}, token {last}, but the model "
                f"has {rows} embeddings; take it out of the question or the template"
            )
    names = ("max_position_embeddings", "n_positions")
    context = next((config[name] for name in names if config.get(name)), None)
    longer = [
        f"{row['question_id']} ({len(ids)} tokens)"
        for row, ids in zip(shown, input_ids, strict=True)
        if context and len(ids) > context
    ]
    if longer:
        raise InputError(
            f"{len(longer)} prompt(s) do not fit into the model's context of {context} tokens: "
            f"{', '.join(longer[:3])}{', ...' if len(longer) > 3 else ''}; show fewer shots"
        )
