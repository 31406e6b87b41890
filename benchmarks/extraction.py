"""Extraction of all layers against what a user would run instead, on the same model and prompts.

Every comparison runs in one process, interleaved, several times, and first checks that the other
side gives the same numbers:

* a bare forward pass of the decoder over the same padded batches, nothing captured;
* lm-evaluation-harness (hf backend), which reads the last layer only, without shots and with five;
* the logit lens over all layers in nnsight and in TransformerLens, each in batches of 16.

Prompts are a study's; those with shots show the first five questions of a subject before each
question of other subjects, as many to a subject as ``--behind``, since MMLU has 250 behind the same
five. nnsight and TransformerLens are compared only where they are installed:

    pip install nnsight==0.8.1 transformer-lens==4.3.0
    python benchmarks/extraction.py --model smollm2-135m
"""

import argparse
import contextlib
import importlib.util

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from memory import measured
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import AutoTokenizer

from layercal.model import extract, lens, load
from layercal.prompts import templates
from layercal.results import Results
from layercal.sources import questions
from layercal.sources.questions import LETTERS

BATCH, TOKENS = 16, 2048
OTHERS = ["bare", "harness", "nnsight", "transformer_lens"]


class Task:
    """A model and tokenized prompts."""

    def __init__(self, read, tokenizer, texts):
        self.read, self.tokenizer, self.texts = read, tokenizer, texts
        options = [4] * len(texts)
        self.ids, (self.option_ids, *_) = templates.tokenize(tokenizer, texts, options)
        self.option_ids = torch.tensor(self.option_ids)

    def residuals(self):
        """What layercal does."""
        return extract.read(self.read, self.ids, TOKENS)["residuals"]

    def bare(self):
        """The decoder alone, over padded batches."""
        found = torch.empty(len(self.ids), self.read.width, dtype=self.read.dtype)
        for rows in extract.length_batches([len(ids) for ids in self.ids], TOKENS):
            ids, mask = self.padded(rows, "right")
            with torch.inference_mode():
                inputs = {"input_ids": ids, "attention_mask": mask, "use_cache": False}
                hidden = self.read.decoder(**inputs).last_hidden_state
            found[rows] = hidden[torch.arange(len(rows)), mask.sum(-1) - 1]
        return found

    def padded(self, rows, side):
        """Tokens and mask of some prompts."""
        ids = [torch.tensor(self.ids[row]) for row in rows]
        mask = [torch.ones_like(one) for one in ids]
        return (pad_sequence(one, batch_first=True, padding_side=side) for one in (ids, mask))

    def option_logits(self):
        """The whole of layercal's logit lens, (n, L + 1, 4)."""
        return lens.read(self.read, self.residuals(), self.option_ids)["logits"]

    def harness(self):
        """Log-probabilities of the letters by lm-evaluation-harness, (n, 4)."""
        if not hasattr(self, "backend"):
            self.backend = HFLM(self.read.model, tokenizer=self.tokenizer, batch_size=BATCH)
        asked = [
            Instance("loglikelihood", {}, (text, f" {letter}"), i)
            for i, (text, letter) in enumerate((t, x) for t in self.texts for x in LETTERS[:4])
        ]
        said = self.backend.loglikelihood(asked, disable_tqdm=True)
        return torch.tensor([value for value, _ in said]).reshape(-1, 4)

    def by_batch(self, one_batch):
        """Option logits at all layers from left-padded batches, prompts in order of length."""
        order = sorted(range(len(self.ids)), key=lambda row: -len(self.ids[row]))
        found = torch.empty(len(order), self.read.n_layers + 1, 4)
        for start in range(0, len(order), BATCH):
            rows = order[start : start + BATCH]
            with torch.inference_mode():
                found[rows] = one_batch(*self.padded(rows, "left")).float().cpu()
        return found


def nnsight(task):
    """Logit lens in nnsight: norm and head on what each block gives at the last position."""
    from nnsight import NNsight

    traced, ids_of = NNsight(task.read.model), task.option_ids

    def one_batch(ids, mask):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        with traced.trace(**inputs):
            stream = [traced.model.layers[0].input[:, -1]]
            stream += [layer.output[:, -1] for layer in traced.model.layers]
            logits = [traced.lm_head(traced.model.norm(h))[:, ids_of] for h in stream]
            found = torch.stack(logits, 1).save()
        return found

    return lambda: task.by_batch(one_batch)


def transformer_lens(task, folder):
    """Logit lens in TransformerLens, caching the residual stream only."""
    from transformer_lens.model_bridge import TransformerBridge

    dtype = task.read.dtype
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=dtype)

    def one_batch(ids, mask):
        _, cache = bridge.run_with_cache(
            ids,
            attention_mask=mask,
            names_filter=lambda name: "resid" in name or "hook_out" in name or "ln_final" in name,
        )
        letters = task.option_ids.tolist()
        found = cache.logit_lens(positions=-1, vocab=letters, return_type="logits")
        return found.values.movedim(0, 1)

    return lambda: task.by_batch(one_batch)


def with_shots(table, tokenizer, subjects, behind):
    """Prompts of many questions behind the same five of a subject."""
    rows = questions.load(table)
    names = sorted({row["subject"] for row in rows})[:subjects]
    texts = []
    for name in names:
        shots = [row for row in rows if row["subject"] == name][:5]
        others = [row for row in rows if row["subject"] not in names][:behind]
        shown = [{**row, "subject": name} for row in others]
        texts += [templates.template("hendrycks", tokenizer).render(row, shots) for row in shown]
    return texts


def compare(name, ours, theirs, alike, repeats):
    """Time both sides by turns and print the ratio of theirs to ours."""
    difference = alike(ours(), theirs())
    spent, memory = np.empty((repeats, 2)), np.empty((repeats, 2))
    for turn in tqdm(range(repeats), desc=name, disable=None):
        for side, act in enumerate((ours, theirs)):
            _, spent[turn, side], memory[turn, side] = measured(act)
    ratio = spent[:, 1] / spent[:, 0]
    print(f"| {name} | {np.median(spent[:, 0]):.1f} | {np.median(spent[:, 1]):.1f}", end=" | ")
    print(f"{np.median(ratio):.2f} ({ratio.min():.2f}-{ratio.max():.2f})", end=" | ")
    gigabytes = np.median(memory, 0) / 1024
    print(f"{gigabytes[0]:.2f} | {gigabytes[1]:.2f} | {difference:.2g} |")


def largest(a, b):
    return (a.float() - b.float()).abs().max().item()


def main():
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    made.add_argument("--model", default="smollm2-135m")
    made.add_argument("--questions", default="mmlu-dev")
    made.add_argument("--limit", type=int, default=64, help="prompts without shots")
    made.add_argument("--subjects", type=int, default=3, help="subjects of prompts with shots")
    made.add_argument("--behind", type=int, default=40, help="questions behind the same shots")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--dtype", default="float32", help="as in the config of a study")
    made.add_argument("--against", nargs="+", choices=OTHERS, default=OTHERS)
    args = made.parse_args()
    results = Results("embedded", args.model, args.questions)
    folder = results.path("manifest").parent
    read, tokenizer = load(folder, args.dtype, "cpu"), AutoTokenizer.from_pretrained(folder)
    plain = Task(read, tokenizer, results.prompts["prompt"].tolist()[: args.limit])
    behind = with_shots(results.path("texts"), tokenizer, args.subjects, args.behind)
    shots = Task(read, tokenizer, behind)
    print(f"{args.model}, {args.dtype}, {torch.get_num_threads()} threads; ", end="")
    print(
        f"{len(plain.ids)} prompts of {np.mean([len(i) for i in plain.ids]):.0f} tokens, ", end=""
    )
    print(f"{len(shots.ids)} with five shots of {np.mean([len(i) for i in shots.ids]):.0f}")
    print("| against | layercal, s | other, s | ratio (range) | GB | GB, other | difference |")
    print("|---|---|---|---|---|---|---|")

    def last(h, hidden):  # the decoder's output has passed the final norm
        with torch.inference_mode():
            return largest(read.unembed(h[:, -1]), read.head(hidden).float())

    def letters(task):
        def alike(h, said):
            logits = read.unembed(h[:, -1]).log_softmax(-1)
            return largest(logits[:, task.option_ids], said)

        return alike

    kinds = {"no shots": plain, "five shots": shots}
    for kind, task in kinds.items() if "bare" in args.against else ():
        compare(f"bare forward pass, {kind}", task.residuals, task.bare, last, args.repeats)
    for kind, task in kinds.items() if "harness" in args.against else ():
        sides = task.residuals, task.harness
        compare(f"lm-evaluation-harness, {kind}", *sides, letters(task), args.repeats)
    lenses = {"nnsight": nnsight, "transformer_lens": lambda task: transformer_lens(task, folder)}
    for name, made_of in lenses.items():
        if name not in args.against:
            continue
        if importlib.util.find_spec(name) is None:
            print(f"| {name}: not installed | | | | | | |")
            continue
        with contextlib.redirect_stdout(None):
            theirs = made_of(plain)
        compare(f"logit lens in {name}", plain.option_logits, theirs, largest, args.repeats)


if __name__ == "__main__":
    main()
