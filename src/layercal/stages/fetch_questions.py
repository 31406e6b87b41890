"""Fetch one question set of the registry and write it as one checked table."""

from __future__ import annotations

import pandas as pd

from layercal import files
from layercal.prompts import rotation
from layercal.sources import question_sources
from layercal.sources.questions import copies, to_table
from layercal.stages import Output, log


def fetch_questions(
    *,
    questions: str,
    entry: dict,
    table: Output,
    rejected: Output,
) -> None:
    """Read, check and write the table, and the list of what was left out or is to be noted."""
    rows, left_out = question_sources.read(questions, entry)
    files.write_atomically(table, to_table(rows).to_parquet(index=False))
    listed = [{**one, "kept": False} for one in left_out] + noted(rows)
    listing = pd.DataFrame(listed, columns=["where", "kept", "reason", "question"])
    files.write_atomically(rejected, listing.to_csv(index=False))
    log.info("%s: %d questions, %d left out", questions, len(rows), len(left_out))
    if len(listed) > len(left_out):
        found = "%d make sense in one order only, which option_order: cyclic leaves them in"
        log.info(found, len(listed) - len(left_out))
    repeated = copies(rows)
    if repeated:
        said = "%d repeat another one, text and options; each shares the cluster of its original"
        log.info(said, repeated)


def noted(rows: list[dict]) -> list[dict]:
    """Questions that are kept, in their own order whatever the option order, each with why."""
    reasons = ((row, rotation.fixed(row)) for row in rows)
    return [
        {"where": row["question_id"], "kept": True, "reason": why, "question": row["question"]}
        for row, why in reasons
        if why
    ]
