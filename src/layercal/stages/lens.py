"""Read extracted residuals at every layer: through the logit lens, and through the tuned lens."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from layercal import results, stages
from layercal.model import lens
from layercal.sources import questions
from layercal.sources.questions import LETTERS


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
    run = results.Run.load(args.prompts)
    prompts, residuals = run.prompts, results.Residuals.load(args.residuals, run)
    n_options = torch.tensor(prompts["option_ids"].map(len).to_numpy())
    option_ids = torch.tensor(max(prompts["option_ids"], key=len))
    model = stages.load_model(args)
    fold = torch.tensor(questions.folds(prompts["cluster"].tolist(), args.folds, args.seed))
    by_layer, by_layer_tuned, final = [], [], residuals[:, -1]
    # one layer at a time: all residuals of a large set do not fit into memory
    for layer in tqdm(range(residuals.shape[1]), desc="lens", unit="layer", disable=None):
        h = residuals[:, layer]
        by_layer.append(lens.read(model, h, option_ids, n_options))
        if layer < residuals.shape[1] - 1:
            h = lens.translate(h, final, fold)
        by_layer_tuned.append(lens.read(model, h, option_ids, n_options))
    for path, found in ((args.out, by_layer), (args.tuned, by_layer_tuned)):
        run.write(path, _table(prompts, found))


def _table(prompts: pd.DataFrame, by_layer: list[dict[str, torch.Tensor]]) -> pd.DataFrame:
    found = {name: torch.stack([one[name] for one in by_layer], 1) for name in by_layer[0]}
    n, layers = found["entropy"].shape
    columns = {
        name: np.repeat(prompts[name].to_numpy(), layers)
        for name in ("question_id", "permutation", "answer")
    }
    columns["layer"] = np.tile(np.arange(layers), n)
    for place, logits in enumerate(found["logits"].unbind(-1)):
        columns[f"logit_{LETTERS[place]}"] = logits.flatten().cpu().numpy()
    for name in ("option_mass", "entropy"):
        columns[name] = found[name].flatten().cpu().numpy()
    return pd.DataFrame(columns)


if __name__ == "__main__":
    main()
