"""Read extracted residuals at every layer: through the logit lens, and through the tuned lens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from layercal import results
from layercal.model import lens
from layercal.model.fetched import load_fetched
from layercal.sources import questions
from layercal.sources.questions import LETTERS
from layercal.stages import Output


def read_lens(
    *,
    manifest: Path,
    prompts: Path,
    residuals: list[Path],
    folds: int = 5,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str = "none",
    threads: int | None = None,
    options: Output,
    tuned: Output,
) -> None:
    """Write one row a prompt and layer, of both lenses."""
    run = results.Run.load(prompts)
    stream = results.Residuals.load(residuals, run)
    n_options, option_ids = torch.tensor(run.n_options), torch.tensor(run.option_ids)
    model = load_fetched(manifest, dtype, device, quantize, threads)
    fold = torch.tensor(questions.folds(run.prompts["cluster"].tolist(), folds, seed))
    by_layer, by_layer_tuned, final = [], [], stream[:, -1]
    # one layer at a time: all residuals of a large set do not fit into memory
    for layer in tqdm(range(stream.shape[1]), desc="lens", unit="layer", disable=None):
        h = stream[:, layer]
        by_layer.append(lens.read(model, h, option_ids, n_options))
        if layer < stream.shape[1] - 1:
            h = lens.translate(h, final, fold)
        by_layer_tuned.append(lens.read(model, h, option_ids, n_options))
    for path, found in ((options, by_layer), (tuned, by_layer_tuned)):
        run.write(path, _table(run.prompts, found))


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
