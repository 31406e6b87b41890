"""Steer the prompts of one shard over all directions, layers, scales and modes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import pad
from tqdm import tqdm

from layercal import results, stages
from layercal.ablation import blocks
from layercal.steering import interventions, tally


def main() -> None:
    """Run the stage."""
    made = stages.parser("steer", __doc__)
    stages.add_model_options(made)
    made.add_argument("--prompts", type=Path, required=True)
    made.add_argument("--residuals", type=Path, nargs="+", required=True, help="shards, in order")
    made.add_argument("--shard", type=int, required=True)
    made.add_argument("--directions", type=Path, required=True, help="directions.safetensors")
    made.add_argument("--alphas", type=float, nargs="+", required=True)
    made.add_argument("--modes", nargs="+", choices=sorted(interventions.READ_LAYER), required=True)
    made.add_argument("--n-bins", type=int, default=10, help="of the ECE of the controls")
    made.add_argument("--chunk", type=int, default=512, help="settings in one pass; bounds memory")
    made.add_argument("--out", type=Path, required=True, help="logits (safetensors) to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Write, per mode, logits of shape (n, directions, layers, alphas, options).

    They are -inf for options that a question has not. The directions of a question are, for each
    variant of ``steering.variants``, its K fits (one an outer fold), then the first control, which
    those with the final norm frozen have not. ``{mode}-growth`` (n, K, layers, alphas) is by what
    the primary direction grows the final norm's scale; ``{mode}-controls`` (cells, layers, R,
    alphas, sums) is all that is kept of the controls. ``without`` (n, blocks, 2, options) is read
    with attention or MLP of one of the blocks above the first layer at its mean. ``rows`` (n) are
    the places of the questions among all prompts.
    """
    run = results.Run.load(args.prompts)
    prompts, fitted = run.prompts, run.read(args.directions)
    inside = (prompts["shard"] == args.shard).to_numpy()
    residuals = results.Residuals.load(args.residuals, run)
    model = stages.load_model(args)
    n_options = prompts["option_ids"].map(len).max()
    cells = tally.cells(prompts, fitted["fold"].numpy())
    logits: dict[str, list[torch.Tensor]] = {}
    sums: dict[str, np.ndarray] = {}
    label = f"{args.manifest.parent.name}: steering, shard {args.shard}"
    for row in tqdm(inside.nonzero()[0], desc=label, unit="prompt", disable=None):
        option_ids = torch.tensor(prompts["option_ids"].iloc[row])
        found = _one(args, model, fitted, prompts.iloc[row], residuals.of_question(row), row)
        for mode in args.modes:
            controls = found.pop(mode + interventions.CONTROLS).transpose(0, 1)
            answer = prompts["answer"].iloc[[row]].to_numpy()
            added = tally.score_rows(controls.numpy()[..., None, :], answer, args.n_bins)[..., 0, :]
            total = sums.setdefault(mode, np.zeros((cells.max() + 1, *added.shape)))
            total[cells[row]] += added
            found[mode] = torch.cat([found[mode], controls[None, :, 0]])
        lacking = (0, n_options - len(option_ids))
        for name, one in found.items():
            if not name.endswith(interventions.GROWTH):
                one = pad(one, lacking, value=-torch.inf)
            logits.setdefault(name, []).append(one)
    written = {name: torch.stack(one) for name, one in logits.items()}
    written |= {
        mode + interventions.CONTROLS: torch.from_numpy(one).float() for mode, one in sums.items()
    }
    run.write(args.out, {"rows": torch.tensor(inside.nonzero()[0]), **written})


def _one(args, model, fitted, prompt, residuals: torch.Tensor, row: int) -> dict:
    """All readings of one prompt, from the residuals that the lens reads."""
    option_ids = torch.tensor(prompt["option_ids"])
    prefix = model.prefix(torch.tensor(prompt["input_ids"]))
    prefix = replace(prefix, residuals=residuals.to(model.device))
    found = interventions.sweep_prompt(
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
        lowest = min(int(fitted["layers"][0]) + 1, model.n_layers)
        means = fitted["written"][lowest - 1 :]
        changed = blocks.without_parts(model, prefix, lowest, means)
        found["without"] = model.option_logits(changed, option_ids).cpu()
    return found


if __name__ == "__main__":
    main()
