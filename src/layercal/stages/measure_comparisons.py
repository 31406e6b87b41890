"""Compare models, and ways of asking, on the same questions of a study."""

from __future__ import annotations

from pathlib import Path

from layercal import results
from layercal.metrics import comparisons, readings
from layercal.metrics.phase import Phase
from layercal.stages import Output, log


def measure_comparisons(
    *,
    of_models: list[str],
    of_questions: list[str],
    prompts: list[Path],
    options: list[Path],
    phases: list[Path],
    min_group: int = 30,
    n_bins: int = 10,
    draws: int = 1000,
    seed: int = 0,
    table: Output,
) -> None:
    """Write the differences of all that share their model or their questions."""
    runs = [results.Run.load(path) for path in prompts]
    pairs = zip(of_models, of_questions, runs, options, phases, strict=True)
    read = [_reading(*pair) for pair in pairs]
    made = comparisons.table(read, min_group, n_bins, draws, seed)
    results.write_table(table, made, *runs)
    for row in made[made["outcome"].isin(["lower", "higher"])].itertuples():
        log.info(
            "%s on %s, against %s on %s: %s %s",
            *(row.model_b, row.questions_b, row.model_a, row.questions_a, row.metric, row.outcome),
        )


def _reading(
    model: str, questions: str, run: results.Run, options: Path, phase: Path
) -> comparisons.Reading:
    reached = Phase.from_json(run.read(phase))
    table = run.by_prompt(options)
    ends = table[table["layer"].isin([reached.peak_layer, reached.final_layer])]
    read = readings.primary(ends, run.prompts)
    asked = run.prompts.drop_duplicates("question_id").set_index("question_id")
    return comparisons.Reading(
        model=model,
        questions=questions,
        asked=asked.assign(n_options=asked["option_ids"].map(len)),
        peak=read.logits[0],
        final=read.logits[-1],
        phase=reached,
    )
