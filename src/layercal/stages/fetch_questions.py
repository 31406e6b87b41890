"""Fetch one question set of the registry and write it as one checked table."""

from pathlib import Path

import pandas as pd

from layercal import question_sources, questions, registry, sources, stages


def main() -> None:
    """Run the stage."""
    made = stages.parser("fetch_questions", __doc__)
    made.add_argument("--questions", required=True, help="name in the registry")
    made.add_argument("--registry", type=Path, default="config/questions.yaml")
    made.add_argument("--out", type=Path, required=True, help="question table (parquet)")
    made.add_argument("--rejected", type=Path, required=True, help="what was left out (CSV)")
    stages.run(stage, made)


def stage(args) -> None:
    """Read, check and write the table, and the list of what was left out."""
    entry = registry.entry_of(args.registry, args.questions)
    rows, rejected = question_sources.read(args.questions, entry)
    table = questions.to_table(rows)
    sources.write_atomically(args.out, table.to_pandas().to_parquet(index=False))
    left_out = pd.DataFrame(rejected, columns=["where", "reason", "question"])
    sources.write_atomically(args.rejected, left_out.to_csv(index=False))
    stages.log.info("%s: %d questions, %d left out", args.questions, len(rows), len(rejected))
    if questions.copies(rows):
        copies = "%d repeat another one, text and options; each shares the cluster of its original"
        stages.log.info(copies, questions.copies(rows))


if __name__ == "__main__":
    main()
