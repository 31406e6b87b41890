"""Steer the prompts of one shard over all directions, layers, scales and modes."""

from pathlib import Path

import torch
from torch.nn.functional import pad
from tqdm import tqdm

from layercal import attribution, runs, stages, steering


def main() -> None:
    """Run the stage."""
    made = stages.parser("steer", __doc__)
    stages.add_model_options(made)
    made.add_argument("--prompts", type=Path, required=True)
    made.add_argument("--shard", type=int, required=True)
    made.add_argument("--directions", type=Path, required=True, help="directions.safetensors")
    made.add_argument("--alphas", type=float, nargs="+", required=True)
    made.add_argument("--modes", nargs="+", choices=sorted(steering.READ_LAYER), required=True)
    made.add_argument("--chunk", type=int, default=512, help="settings in one pass; bounds memory")
    made.add_argument("--out", type=Path, required=True, help="logits (safetensors) to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Write, per mode, logits of shape (n, directions, layers, alphas, options).

    They are -inf for options that a question has not. The directions of a question are, for each
    variant of ``steering.variants``, its K fits (one an outer fold), then the random ones, which
    those with the final norm frozen have not. ``without`` (n, blocks, 2, options) is read with
    attention or MLP of one of the blocks above the first layer at its mean. ``rows`` (n) are the
    places of the questions among all prompts.
    """
    run = runs.Run.load(args.prompts)
    prompts, fitted = run.prompts, run.read(args.directions)
    inside = (prompts["shard"] == args.shard).to_numpy()
    model = stages.load_model(args)
    n_options = prompts["option_ids"].map(len).max()
    lowest = min(int(fitted["layers"][0]) + 1, model.n_layers)
    logits = []
    label = f"{args.manifest.parent.name}: steering, shard {args.shard}"
    for row in tqdm(inside.nonzero()[0], desc=label, unit="prompt", disable=None):
        option_ids = torch.tensor(prompts["option_ids"].iloc[row])
        prefix = model.prefix(torch.tensor(prompts["input_ids"].iloc[row]))
        found = steering.sweep_prompt(
            model,
            prefix,
            option_ids,
            fitted,
            int(fitted["fold"][row]),
            args.alphas,
            args.modes,
            args.chunk,
        )
        if "written" in fitted:
            means = fitted["written"][lowest - 1 :]
            changed = attribution.without_parts(model, prefix, lowest, means)
            found["without"] = model.option_logits(changed, option_ids).cpu()
        lacking = (0, n_options - len(option_ids))
        logits.append({name: pad(one, lacking, value=-torch.inf) for name, one in found.items()})
    written = {name: torch.stack([one[name] for one in logits]) for name in logits[0]}
    run.write(args.out, {"rows": torch.tensor(inside.nonzero()[0]), **written})


if __name__ == "__main__":
    main()
