"""Compare the steering sweep with full passes hooked by the public package steering-vectors.

Both add a vector to the residual stream at the answer position of a study's prompts and run the
rest of the network, for the same layers, directions and scales. Full passes cost the same whatever
the setting, so they are run on a sample of settings, evenly spread over the layers, and their time
is scaled up to all of them; they project the last position only. The sweep is timed whole, with
its run of the prefix. Option logits must agree, or the comparison stops. All is repeated with
several bounds on the sweep's memory (settings in one pass). That memory does not grow with the
sweep is shown on its lowest layer, with 4 and 16 times as many directions.

steering-vectors asks for transformers < 5, but its hooks run on 5 as they are:

    pip install --no-deps steering-vectors==0.12.2
    python benchmarks/steering.py --questions 3
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from memory import measured
from steering_vectors import SteeringVector
from steering_vectors.layer_matching import guess_and_enhance_layer_config
from tqdm import tqdm

from layercal.metrics import phase
from layercal.model import load
from layercal.model.lens_model import GATE_TOLERANCE
from layercal.results import Results
from layercal.steering import interventions

ALPHAS = torch.tensor([-1, -0.5, 0.25, 0.5, 0.75, 1, 1.5, 2])  # the study's, but 0
LAYERS, DIRECTIONS, LARGER = 6, 23, (4, 16)


class Sweep:
    """One prompt and the vectors that are added to it."""

    def __init__(self, read, prompt, layers):
        self.read, self.layers = read, layers
        self.ids = torch.tensor(prompt.input_ids)
        self.option_ids = torch.tensor(prompt.option_ids)
        self.norms = read.residuals(self.ids[None])[0].float().norm(dim=-1)
        self.matcher = guess_and_enhance_layer_config(read.model, layer_type="decoder_block")

    def vectors(self, layer, drawn):
        """All settings of one layer, (directions x scales, d)."""
        return (ALPHAS[:, None] * self.norms[layer] * drawn[:, None]).flatten(0, 1)

    def ours(self, drawn, chunk):
        """Option logits of all settings, (layers, directions x scales, n_options)."""
        prefix = self.read.prefix(self.ids)
        every = ((layer, self.changed(prefix, layer, drawn)) for layer in self.layers)
        return torch.stack([self.at_layer(prefix, *some, chunk) for some in every])

    def changed(self, prefix, layer, drawn):
        """Residuals with the vectors of all settings of one layer added, (settings, d)."""
        return prefix.residuals[layer].float() + self.vectors(layer, drawn)

    def at_layer(self, prefix, layer, changed, chunk):
        """Option logits of all settings of one layer, (settings, n_options)."""
        live, _ = interventions.steered_logits(
            self.read, prefix, layer, changed, self.option_ids, "through-network", chunk
        )
        return live

    def memory(self, drawn, chunk):
        """MB that the lowest layer takes at most, above the changed residuals it is given."""
        layer, prefix = self.layers[0], self.read.prefix(self.ids)
        changed = self.changed(prefix, layer, drawn)
        return measured(self.at_layer, prefix, layer, changed, chunk)[2]

    @torch.inference_mode()
    def hooked(self, drawn, sample):
        """Option logits of the sampled settings, (sample, n_options), one full pass for each."""
        found = []
        for place, row in sample:
            layer = self.layers[place]
            vector = SteeringVector({layer - 1: self.vectors(layer, drawn)[row]})
            last = len(self.ids) - 1
            with vector.apply(self.read.model, self.matcher, min_token_index=last):
                told = self.read.model(self.ids[None], use_cache=False, logits_to_keep=1)
            found.append(told.logits[0, -1, self.option_ids].float())
        return torch.stack(found)


def compare(sweeps, drawn, sample, args):
    """One row a repeat, prompt and way; the sweeps of each prompt follow its full passes."""
    rows = []
    for repeat in range(args.repeats):
        for sweep in tqdm(sweeps, desc=f"repeat {repeat + 1}", leave=False, disable=None):
            expected, seconds, memory = measured(sweep.hooked, drawn, sample)
            rows.append((repeat, 0, seconds, memory, 0.0))
            for chunk in args.chunks:
                found, seconds, memory = measured(sweep.ours, drawn, chunk)
                there = torch.stack([found[setting] for setting in sample])
                difference = (there - expected).abs().max().item()
                if not difference <= GATE_TOLERANCE[sweep.read.dtype]:
                    raise SystemExit(f"chunk {chunk}: option logits differ by {difference:.2g}")
                rows.append((repeat, chunk, seconds, memory, difference))
    return pd.DataFrame(rows, columns=["repeat", "chunk", "seconds", "memory", "difference"])


def show(rows, growth, n_prompts, settings, at_layer, args):
    """Print one Markdown table: full passes first, then the sweep at each chunk."""
    head = ["what", "settings/s", "ratio: min", "median", "max", "max logit difference"]
    head += ["peak memory", *(f"of {times * at_layer} settings at one layer" for times in LARGER)]
    print("|", " | ".join(head), "|")
    print("|" + "---|" * len(head))
    total = rows.pivot_table("seconds", "chunk", "repeat", aggfunc="sum")
    naive = total.loc[0] / args.naive * settings
    largest = rows.groupby("chunk")[["memory", "difference"]].max()
    speed = n_prompts * settings / total.median(axis=1)
    full = n_prompts * settings / naive.median()
    print(f"| full passes | {full:.3g} | | 1 | | | {largest['memory'][0]:.0f} | | |")
    for chunk in args.chunks:
        ratio = naive / total.loc[chunk]
        print(
            f"| sweep, {chunk} settings a pass | {speed[chunk]:.3g} "
            f"| {ratio.min():.0f} | {ratio.median():.0f} | {ratio.max():.0f} "
            f"| {largest['difference'][chunk]:.1g} | {largest['memory'][chunk]:.0f} "
            "| {:.0f} | {:.0f} |".format(*growth[chunk])
        )


def main():
    made = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    folder = Path("resources/models/qwen2.5-coder-1.5b")
    made.add_argument("--model", type=Path, default=folder, help="folder of a study's model")
    made.add_argument("--questions", type=int, default=3, help="prompts, spread over mmlu-dev")
    made.add_argument("--dtype", default="float32")
    made.add_argument("--lowest", type=int, help="lowest steered layer; half the depth if left out")
    made.add_argument("--naive", type=int, default=12, help="settings run as full passes")
    made.add_argument("--repeats", type=int, default=3)
    made.add_argument("--chunks", type=int, nargs="+", default=[32, 128, 512])
    args = made.parse_args()

    read = load(args.model, args.dtype, "cpu")
    folder = args.model.resolve()
    prompts = Results("embedded", folder.name, "mmlu-dev", folder.parents[2]).prompts
    kept = np.linspace(0, len(prompts) - 1, args.questions).round().astype(int)
    lowest = args.lowest or read.n_layers // 2
    layers = phase.sweep_layers(lowest, read.n_layers, LAYERS)
    sweeps = [Sweep(read, prompt, layers) for prompt in prompts.iloc[kept].itertuples()]
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(LARGER[-1] * DIRECTIONS, read.width, generator=generator)
    drawn = torch.nn.functional.normalize(drawn, dim=-1)
    few = drawn[:DIRECTIONS]
    at_layer = len(few) * len(ALPHAS)
    spread = np.linspace(0, len(layers) * at_layer - 1, args.naive).round().astype(int)
    sample = [divmod(int(setting), at_layer) for setting in spread]

    for sweep in sweeps:  # the first run of anything is slower
        sweep.hooked(few, sample[:1])
        sweep.ours(few[:1], 1)
    rows = compare(sweeps, few, sample, args)
    growth = {
        chunk: [sweeps[0].memory(drawn[: times * DIRECTIONS], chunk) for times in LARGER]
        for chunk in args.chunks
    }

    lengths = ", ".join(str(len(sweep.ids)) for sweep in sweeps)
    ways = {read.pass_of(read.prefix(sweep.ids)).__name__ for sweep in sweeps}
    print(
        f"{args.model.name}, {args.dtype}, {torch.get_num_threads()} thread(s), prompts of "
        f"{lengths} tokens, layers {layers} of {read.n_layers}, {' and '.join(ways)}; "
        f"{args.naive} of {len(layers) * at_layer} settings run as full passes; "
        f"{args.repeats} repeats; peak memory in MB above the model"
    )
    show(rows, growth, len(sweeps), len(layers) * at_layer, at_layer, args)


if __name__ == "__main__":
    main()
