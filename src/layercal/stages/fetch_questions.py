"""Fetch one question set of the registry and write it as one checked table."""

from pathlib import Path

import pandas as pd

from layercal import files, stages
from layercal.prompts import rotation
from layercal.sources import question_sources, questions, registry


def main() -> None:
    """Run the stage."""
    made = stages.parser("fetch_questions", __doc__)
    made.add_argument("--questions", required=True, help="name in the registry")
    made.add_argument("--registry", type=Path, default="config/questions.yaml")
    made.add_argument("--out", type=Path, required=True, help="question table (parquet)")
    made.add_argument(
        "--rejected", type=Path, required=True, help="what was left out or noted (CSV)"
    )
    stages.run(stage, made)


def stage(args) -> None:
    """Read, check and write the table, and the list of what was left out or is to be noted."""
    entry = registry.entry_of(args.registry, args.questions)
    rows, rejected = question_sources.read(args.questions, entry)
    table = questions.to_table(rows)
    files.write_atomically(args.out, table.to_parquet(index=False))
    listed = [{**one, "kept": False} for one in rejected] + noted(rows)
    left_out = pd.DataFrame(listed, columns=["where", "kept", "reason", "question"])
    files.write_atomically(args.rejected, left_out.to_csv(index=False))
    stages.log.info("%s: %d questions, %d left out", args.questions, len(rows), len(rejected))
    if len(listed) > len(rejected):
        found = "%d make sense in one order only, which option_order: cyclic leaves them in"
        stages.log.info(found, len(listed) - len(rejected))
    if questions.copies(rows):
        copies = "%d repeat another one, text and options; each shares the cluster of its original"
        stages.log.info(copies, questions.copies(rows))


def noted(rows: list[dict]) -> list[dict]:
    """Questions that are kept, in their own order whatever the option order, each with why."""
    reasons = ((row, rotation.fixed(row)) for row in rows)
    return [
        {"where": row["question_id"], "kept": True, "reason": why, "question": row["question"]}
        for row, why in reasons
        if why
    ]


if __name__ == "__main__":
    main()
