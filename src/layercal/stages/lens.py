"""Read extracted residuals at every layer: through the logit lens, and through the tuned lens."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from layercal import lens, questions, sources, stages
from layercal.questions import LETTERS


def main() -> None:
    """Run the stage."""
    made = stages.parser("lens", __doc__)
    stages.add_model_options(made)
    made.add_argument("--prompts", type=Path, required=True)
    made.add_argument("--residuals", type=Path, nargs="+", required=True, help="shards, in order")
    made.add_argument("--folds", type=int, default=5, help="of the tuned lens's cross-fitting")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, required=True, help="options.parquet to write")
    made.add_argument("--tuned", type=Path, required=True, help="tuned.parquet to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Write one row a prompt and layer, of both lenses."""
    prompts = pd.read_parquet(args.prompts)
    residuals = torch.cat([sources.load_tensors(path)["residuals"] for path in args.residuals])
    n_options = torch.tensor(prompts["option_ids"].map(len).to_numpy())
    option_ids = torch.tensor(max(prompts["option_ids"], key=len))
    model = stages.load_model(args)
    fold = torch.tensor(questions.folds(prompts["cluster"].tolist(), args.folds, args.seed))
    for path, read in ((args.out, residuals), (args.tuned, lens.translate(residuals, fold))):
        table = _table(prompts, lens.read(model, read, option_ids, n_options[:, None]))
        sources.write_atomically(path, table.to_parquet(index=False))


def _table(prompts: pd.DataFrame, found: dict[str, torch.Tensor]) -> pd.DataFrame:
    n, layers = found["entropy"].shape
    columns = {
        name: np.repeat(prompts[name].to_numpy(), layers)
        for name in ("question_id", "permutation", "answer")
    }
    columns["layer"] = np.tile(np.arange(layers), n)
    for letter, logits in zip(LETTERS, found["logits"].unbind(-1), strict=False):
        columns[f"logit_{letter}"] = logits.flatten().cpu().numpy()
    for name in ("option_mass", "entropy"):
        columns[name] = found[name].flatten().cpu().numpy()
    return pd.DataFrame(columns)


if __name__ == "__main__":
    main()
