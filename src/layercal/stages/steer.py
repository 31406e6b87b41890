"""Steer the prompts of one shard over all directions, layers, scales and modes."""

import json
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save
from torch.nn.functional import pad
from tqdm import tqdm

from layercal import sources, stages, steering


def main() -> None:
    """Run the stage."""
    made = stages.parser("steer", __doc__)
    stages.add_model_options(made)
    made.add_argument("--prompts", type=Path, required=True)
    made.add_argument("--shard", type=int, required=True)
    made.add_argument("--directions", type=Path, required=True, help="directions.safetensors")
    made.add_argument("--phase", type=Path, required=True, help="phase.json")
    made.add_argument("--estimators", nargs="+", default=["update-mean"])
    made.add_argument("--alphas", type=float, nargs="+", required=True)
    made.add_argument("--modes", nargs="+", choices=sorted(steering.READ_LAYER), required=True)
    made.add_argument("--max-layers", type=int, default=8)
    made.add_argument("--out", type=Path, required=True, help="logits (safetensors) to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Write, per mode, logits of shape (n, directions, layers, alphas, options).

    They are -inf for options that a question has not.
    The directions of a question are, for each estimator, its K fits (one an outer fold), then the
    random ones.
    """
    prompts = pd.read_parquet(args.prompts)
    inside = (prompts["shard"] == args.shard).to_numpy()
    fitted, phase = sources.load_tensors(args.directions), json.loads(args.phase.read_text())
    layers = steering.sweep_layers(phase["peak_layer"], phase["final_layer"], args.max_layers)
    model = stages.load_model(args)
    n_options = prompts["option_ids"].map(len).max()
    logits = []
    label = f"{args.manifest.parent.name}: steering, shard {args.shard}"
    for row in tqdm(inside.nonzero()[0], desc=label, unit="prompt", disable=None):
        directions, norms = steering.directions_of(fitted, args.estimators, int(row))
        option_ids = torch.tensor(prompts["option_ids"].iloc[row])
        found = steering.sweep_prompt(
            model,
            prompts["input_ids"].iloc[row],
            option_ids,
            directions,
            norms,
            layers,
            args.alphas,
            args.modes,
        )
        lacking = (0, n_options - len(option_ids))
        logits.append({mode: pad(one, lacking, value=-torch.inf) for mode, one in found.items()})
    written = {mode: torch.stack([one[mode] for one in logits]) for mode in args.modes}
    sources.write_atomically(args.out, save({**written, "layers": torch.tensor(layers)}))


if __name__ == "__main__":
    main()
