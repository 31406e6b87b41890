"""Extract the residual stream at the answer position, all layers, for one shard of the prompts."""

from pathlib import Path

import torch

from layercal import results, stages
from layercal.model import extract


def main() -> None:
    """Run the stage."""
    made = stages.parser("extract", __doc__)
    stages.add_model_options(made)
    made.add_argument("--prompts", type=Path, required=True)
    made.add_argument("--shard", type=int, default=0)
    made.add_argument("--shards", type=int, default=1, help="into which all prompts are divided")
    made.add_argument("--batch-tokens", type=int, default=2048)
    made.add_argument("--out", type=Path, required=True, help="residuals (safetensors) to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Check the gate on the first prompt, then extract and write the shard at once."""
    run = results.Run.load(args.prompts)
    input_ids = run.prompts["input_ids"].tolist()
    model = stages.load_model(args)
    gate = model.check_gate(torch.tensor(input_ids[0]))
    stages.log.info("gate: lens at L differs from the model's own logits by %.3g", gate)
    found = extract.read(
        model,
        input_ids,
        args.batch_tokens,
        args.shard,
        args.shards,
        f"{args.manifest.parent.name}: residuals, shard {args.shard}",
    )
    if len(found["rows"]) and "neurons" not in found:
        stages.log.info(
            "what its blocks or neurons write cannot be told: no ablation of %s",
            "neurons" if "written" in found else "either",
        )
    run.write(args.out, found)


if __name__ == "__main__":
    main()
