"""What knows, what has a phase: the models of a study side by side, and one that knows nothing.

The last row of a set is a control: the readings of the last model with the answers dealt out at
random (``accuracy.permuted_answers``), so that it names varied letters and knows nothing. Prints a
Markdown table. Runs after ``snakemake lens --configfile config/ladder.yaml``:

    python benchmarks/ladder.py
"""

import argparse
from dataclasses import replace
from pathlib import Path

from layercal import results, study
from layercal.metrics import accuracy, phase, readings

HEAD = "| model | questions | final accuracy | chance | top letter | ECE, peak to final | phase |"


def detected(read, config):
    """Decide on the phase of readings, as the workflow does."""
    return phase.of_readings(
        read,
        draws=config["calibration"]["draws"],
        seed=config["seed"],
        tolerance=config["phase"]["tolerance"],
        n_bins=config["calibration"]["n_bins"][0],
    )


def readings_of(root, model, questions):
    """Readings (L + 1, n) through the logit lens: as they are, or averaged over rotations."""
    run = results.Run.load(root / f"extract/{model}/{questions}/prompts.parquet")
    options = run.by_prompt(root / f"lens/{model}/{questions}/options.parquet")
    return readings.primary(options, run.prompts)


def dealt_out(read, seed):
    """The same readings of questions whose answers are others' at random."""
    answer = accuracy.permuted_answers(read.answer, read.n_options[-1], read.cluster, seed)
    return replace(read, answer=answer)


def row(model, questions, found):
    """One row of the table."""
    low, high = found.accuracy_final_low, found.accuracy_final_high
    return (
        f"| {model} | {questions} | {found.accuracy_final:.3f} [{low:.3f}, {high:.3f}] | "
        f"{found.chance:.3f} (p = {found.chance_p:.2g}) | {found.top_letter:.0%} | "
        f"{found.ece_peak:.3f} to {found.ece_final:.3f} (layers {found.peak_layer}, "
        f"{found.final_layer}) | {found.outcome} |"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="config/ladder.yaml")
    args = parser.parse_args()
    config = study.own_config([args.config])
    root = Path("results", config["study"])
    print(HEAD, "|---" * HEAD.count(" | ") + "|---|", sep="\n")
    for questions in config["questions"]:
        for model in config["models"]:
            read = readings_of(root, model, questions)
            print(row(model, questions, detected(read, config)), flush=True)
        control = detected(dealt_out(read, config["seed"]), config)
        print(row(f"{model}, answers dealt out at random", questions, control), flush=True)


if __name__ == "__main__":
    main()
