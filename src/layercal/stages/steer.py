"""Steer the prompts of one shard over all directions, layers, scales and modes."""

from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from layercal import results, stages
from layercal.ablation import blocks
from layercal.steering import interventions, steered, tally
from layercal.steering.fitted import Fitted


def main() -> None:
    """Run the stage."""
    made = stages.parser("steer", __doc__)
    stages.add_model_options(made)
    made.add_argument("--prompts", type=Path, required=True)
    made.add_argument("--residuals", type=Path, nargs="+", required=True, help="shards, in order")
    made.add_argument("--shard", type=int, required=True)
    made.add_argument("--directions", type=Path, required=True, help="directions.safetensors")
    made.add_argument("--alphas", type=float, nargs="+", required=True)
    made.add_argument("--modes", nargs="+", choices=sorted(steered.READ_LAYER), required=True)
    made.add_argument("--n-bins", type=int, default=10, help="of the ECE of the controls")
    made.add_argument("--chunk", type=int, default=512, help="settings in one pass; bounds memory")
    made.add_argument("--out", type=Path, required=True, help="logits (safetensors) to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Write, per mode, the readings of :class:`layercal.steering.interventions.Steered`.

    ``{mode}/sums`` (cells, layers, R, alphas, sums) is all that is kept of the controls but the
    first. ``without`` (n, blocks, 2, options) is read with attention or MLP of one of the blocks
    above the first layer at its mean. ``rows`` (n) are the places of the questions among all
    prompts.
    """
    run = results.Run.load(args.prompts)
    prompts, fitted = run.prompts, Fitted.load(run, args.directions)
    inside = (prompts["shard"] == args.shard).to_numpy()
    residuals = results.Residuals.load(args.residuals, run)
    model = stages.load_model(args)
    n_options = prompts["option_ids"].map(len).max()
    recorder = steered.Recorder(tally.cells(prompts, fitted.fold.numpy()), n_options, args.n_bins)
    label = f"{args.manifest.parent.name}: steering, shard {args.shard}"
    for row in tqdm(inside.nonzero()[0], desc=label, unit="prompt", disable=None):
        read, without = _one(
            args, model, fitted, prompts.iloc[row], residuals.of_question(row), row
        )
        recorder.add(row, prompts["answer"].iloc[row], read)
        if without is not None:
            recorder.keep("without", without)
    run.write(args.out, {"rows": torch.tensor(inside.nonzero()[0]), **recorder.tensors()})


def _one(args, model, fitted: Fitted, prompt, residuals: torch.Tensor, row: int) -> tuple:
    """Steered readings of one prompt, from the residuals that the lens reads, and without parts."""
    option_ids = torch.tensor(prompt["option_ids"])
    prefix = model.prefix(torch.tensor(prompt["input_ids"]))
    prefix = replace(prefix, residuals=residuals.to(model.device))
    read = interventions.sweep_prompt(
        model,
        prefix,
        option_ids,
        fitted,
        int(fitted.fold[row]),
        args.alphas,
        args.modes,
        args.chunk,
    )
    if fitted.written is None:
        return read, None
    lowest = min(fitted.layers[0] + 1, model.n_layers)
    changed = blocks.without_parts(model, prefix, lowest, fitted.written[lowest - 1 :])
    return read, model.option_logits(changed, option_ids).cpu()


if __name__ == "__main__":
    main()
