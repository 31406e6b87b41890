"""Compare the last layer with lm-evaluation-harness, question by question.

Gives the harness the prompts of a finished study as a local task, on the same model, and compares
the log-probability of each option letter and the prediction with the lens at the last layer.

    python benchmarks/harness.py --model smollm2-135m --questions mmlu-dev
"""

import argparse
import logging

import lm_eval
import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from scipy.special import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from layercal.model.lens_model import resolve_dtype
from layercal.results import Results
from layercal.sources.questions import LETTERS

logging.getLogger("lm_eval").setLevel(logging.ERROR)


def harness_log_probability(model, tokenizer, prompts: pd.DataFrame) -> np.ndarray:
    """Log-probability of each letter over the vocabulary; (n, n_options), -inf if lacking."""
    rows = [
        {"prompt": text, "letters": list(LETTERS[: len(ids)]), "gold": int(gold)}
        for text, ids, gold in zip(
            prompts["prompt"], prompts["option_ids"], prompts["answer"], strict=True
        )
    ]
    task = ConfigurableTask(
        config={
            "task": "local",
            "custom_dataset": lambda **_: {"test": Dataset.from_list(rows)},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{prompt}}",
            "doc_to_choice": lambda row: row["letters"],
            "doc_to_target": "gold",
            "metric_list": [{"metric": "acc"}],
        }
    )
    told = lm_eval.evaluate(
        lm=HFLM(model, tokenizer=tokenizer, batch_size=1),
        task_dict={"local": task},
        bootstrap_iters=0,
    )
    samples = sorted(told["samples"]["local"], key=lambda sample: sample["doc_id"])
    found = np.full((len(rows), max(len(row["letters"]) for row in rows)), -np.inf)
    for place, sample in enumerate(samples):
        said = [value for value, _ in sample["filtered_resps"]]
        assert sample["acc"] == (np.argmax(said) == rows[place]["gold"])
        found[place, : len(said)] = said
    return found


def lens_log_probability(options: pd.DataFrame) -> np.ndarray:
    """The same from a lens table, at the last layer."""
    last = options[options["layer"] == options["layer"].max()]
    logits = last[[name for name in last if name.startswith("logit_")]].to_numpy()
    return log_softmax(logits, -1) + np.log(last["option_mass"].to_numpy())[:, None]


def main():
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--model", default="smollm2-135m")
    made.add_argument("--questions", default="mmlu-dev")
    made.add_argument("--limit", type=int, help="only the first so many prompts")
    made.add_argument("--dtype", default="auto", help="as in the config of the study")
    args = made.parse_args()
    results = Results("embedded", args.model, args.questions)
    folder, prompts = results.path("manifest").parent, results.prompts[: args.limit]
    ours = lens_log_probability(results.options)[: args.limit]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=resolve_dtype(args.dtype, "cpu"))
    with torch.inference_mode():
        theirs = harness_log_probability(model, AutoTokenizer.from_pretrained(folder), prompts)
    answer = prompts["answer"].to_numpy()
    right = [(side.argmax(-1) == answer) for side in (ours, theirs)]
    there = np.isfinite(theirs)
    print(
        "| model | questions | n | accuracy, lens at L | accuracy, harness | right or wrong alike"
    )
    print(f"| {args.model} | {args.questions} | {len(answer)}", end=" ")
    print(f"| {right[0].mean():.4f} | {right[1].mean():.4f} | {(right[0] == right[1]).sum()} |")
    print(f"largest difference of a log-probability: {np.abs(ours - theirs)[there].max():.2g}")


if __name__ == "__main__":
    main()
