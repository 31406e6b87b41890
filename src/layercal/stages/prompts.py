"""Turn questions into tokenized prompts, in the row order that all later tables keep.

Fails before any long work if the option letters are not one token each.
"""

import hashlib
import json
import math
from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerBase

from layercal import InputError, files, stages
from layercal.model import loading
from layercal.prompts import control_tokens, rotation, templates, tokenizing
from layercal.sources import questions


def main() -> None:
    """Run the stage."""
    made = stages.parser("prompts", __doc__)
    made.add_argument("--manifest", type=Path, required=True, help="manifest.json of the model")
    made.add_argument("--questions", type=Path, required=True, help="question table (parquet)")
    made.add_argument("--prompt", default="hendrycks", help="template: name, chat, or file *.j2")
    made.add_argument("--shots", type=int, default=0, help="solved questions shown before each")
    made.add_argument("--option-order", choices=["as-is", "cyclic"], default="as-is")
    made.add_argument("--limit", type=int, default=None, help="questions to keep; all if left out")
    made.add_argument("--shards", type=int, default=1)
    made.add_argument("--folds", type=int, default=1, help="checked: there are as many questions")
    made.add_argument("--min-group", type=int, default=1, help="checked: there are as many")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, required=True, help="prompts.parquet to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Write one row a prompt: identity, answer, shard, tokens and the option tokens."""
    scored, pool = questions.scored_and_shots(questions.load(args.questions))
    order = questions.hash_order([row["question_id"] for row in scored], args.seed)
    rows = [scored[row] for row in sorted(order[: args.limit])]
    if len(rows) < args.shards:
        raise InputError(
            f"{args.questions}: {len(rows)} question(s) cannot be cut into {args.shards} shards; "
            "lower extract: shards in the config"
        )
    _check_number(args, rows)
    stages.restore(args.manifest)
    tokenizer = loading.tokenizer(args.manifest.parent, stages.trusted(args.manifest))
    template = templates.template(args.prompt, tokenizer)
    shots = templates.choose_shots(rows, pool, args.shots)
    rotations = rotation.rotations(rows) if args.option_order == "cyclic" else 1
    shown = [order for row in rows for order in rotation.orders(row, rotations)]
    before = [some for some in shots for _ in range(rotations)]
    texts = [template.render(row, some) for row, some in zip(shown, before, strict=True)]
    n_options = [len(row["choices"]) for row in shown]
    input_ids, option_ids = templates.tokenize(
        tokenizer, texts, n_options, template.lead, template.add_special_tokens
    )
    _check_fit(args.manifest.parent, shown, input_ids, option_ids, tokenizer)
    identity = ["question_id", "cluster", "language", "subject", "category", "answer"]
    written = pd.DataFrame(shown)[identity].assign(
        permutation=list(range(rotations)) * len(rows),
        shard=[
            index * args.shards // len(rows) for index in range(len(rows)) for _ in range(rotations)
        ],
        model_sha256=_model(args.manifest),
        n_shots=[len(some) for some in before],
        n_tokens=[len(ids) for ids in input_ids],
        prompt=[control_tokens.unmarked(text) for text in texts],
        input_ids=input_ids,
        option_ids=option_ids,
    )
    files.write_atomically(args.out, written.to_parquet(index=False))
    files.keep_shards(args.out.parent, "residuals", args.shards)
    stages.log.info(
        "%d prompts, %d tokens, options %s",
        len(shown),
        written["n_tokens"].sum(),
        tokenizer.convert_ids_to_tokens(max(option_ids, key=len)),
    )
    tokenizing.log_beginnings(tokenizer, input_ids)
    fixed = [row["question_id"] for row in rows if rotations > 1 and rotation.fixed(row)]
    if fixed:
        stages.log.info("%d question(s) keep their order: %s", len(fixed), ", ".join(fixed))
    few = sum(len(some) < args.shots for some in shots)
    if few:
        stages.log.info("%d question(s) have fewer shots: their subjects hold no more", few)


def _model(manifest: Path) -> str:
    """Digest of a model's files: models of one tokenizer have the same prompts."""
    listed = json.loads(manifest.read_text())["files"]
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def _check_number(args, rows: list[dict]) -> None:
    """Refuse now what later stages could not do, before any long work."""
    clusters = len({row["cluster"] for row in rows})
    if clusters < args.folds:
        raise InputError(
            f"{args.questions}: {clusters} question(s), copies and translations aside, cannot be "
            f"split into {args.folds} folds; lower folds in the config or study more questions"
        )
    if len(rows) < args.min_group:
        raise InputError(
            f"{args.questions}: {len(rows)} question(s) are fewer than the {args.min_group} that "
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


if __name__ == "__main__":
    main()
