"""Turn questions into tokenized prompts, in the row order that all later tables keep.

Fails before any long work if the option letters are not one token each.
"""

import json
from pathlib import Path

import pandas as pd
from transformers import AutoTokenizer

from layercal import InputError, prompts, questions, sources, stages, tokenizing


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
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, required=True, help="prompts.parquet to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Write one row a prompt: identity, answer, shard, tokens and the option tokens."""
    scored, pool = questions.scored_and_shots(questions.load(args.questions).to_list())
    order = questions.hash_order([row["question_id"] for row in scored], args.seed)
    rows = [scored[row] for row in sorted(order[: args.limit])]
    if len(rows) < args.shards:
        raise InputError(
            f"{args.questions}: {len(rows)} question(s) cannot be cut into {args.shards} shards; "
            "lower extract: shards in the config"
        )
    stages.restore(args.manifest)
    tokenizer = AutoTokenizer.from_pretrained(args.manifest.parent, local_files_only=True)
    tokenizing.match_sentencepiece(tokenizer, args.manifest.parent)
    template = prompts.template(args.prompt, tokenizer)
    shots = prompts.choose_shots(rows, pool, args.shots)
    rotations = prompts.rotations(rows) if args.option_order == "cyclic" else 1
    shown = [prompts.rotate(row, by) for row in rows for by in range(rotations)]
    before = [some for some in shots for _ in range(rotations)]
    texts = [template.render(row, some) for row, some in zip(shown, before, strict=True)]
    n_options = [len(row["choices"]) for row in shown]
    input_ids, option_ids = prompts.tokenize(
        tokenizer, texts, n_options, template.lead, template.add_special_tokens
    )
    _check_length(args.manifest.parent, shown, input_ids)
    identity = ["question_id", "cluster", "language", "subject", "category", "answer"]
    written = pd.DataFrame(shown)[identity].assign(
        permutation=list(range(rotations)) * len(rows),
        shard=[
            index * args.shards // len(rows) for index in range(len(rows)) for _ in range(rotations)
        ],
        n_shots=[len(some) for some in before],
        n_tokens=[len(ids) for ids in input_ids],
        prompt=texts,
        input_ids=input_ids,
        option_ids=option_ids,
    )
    sources.write_atomically(args.out, written.to_parquet(index=False))
    stages.log.info(
        "%d prompts, %d tokens, options %s",
        len(shown),
        written["n_tokens"].sum(),
        tokenizer.convert_ids_to_tokens(max(option_ids, key=len)),
    )
    tokenizing.log_beginnings(tokenizer, input_ids)
    few = sum(len(some) < args.shots for some in shots)
    if few:
        stages.log.info("%d question(s) have fewer shots: their subjects hold no more", few)


def _check_length(folder: Path, shown: list[dict], input_ids: list[list[int]]) -> None:
    """Refuse prompts longer than the model's context, where its config states one."""
    config = json.loads((folder / "config.json").read_text())
    config = config.get("text_config", config)
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
