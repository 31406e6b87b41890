"""Fit calibration directions, cross-fitted, with their controls; say how many dimensions matter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from layercal import InputError, results
from layercal.ablation import nullspace
from layercal.metrics.phase import Phase, sweep_layers
from layercal.metrics.readings import Group, prompt_logits
from layercal.model import LensModel
from layercal.model.fetched import load_fetched
from layercal.sources import questions
from layercal.stages import Output, log
from layercal.steering import controls, dimensions, directions
from layercal.steering.fitted import CONTROL, ESTIMATOR, Direction, Fitted

UPDATE_MEAN = Direction(name="update-mean", kind=ESTIMATOR, estimator="update-mean")


def fit_directions(
    *,
    manifest: Path,
    prompts: Path,
    residuals: list[Path],
    options: Path,
    phase: Path,
    source_prompts: list[Path],
    source_residuals: list[Path],
    sources: list[str],
    estimators: list[str],
    ranks: list[int],
    blocks: int = 3,
    random: int = 200,
    null_rule: str = "energy=0.999",
    max_layers: int = 8,
    category_group: int | None = None,
    tolerance: float = 0.02,
    n_bins: int = 10,
    draws: int = 1000,
    folds: int = 5,
    seed: int = 0,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str = "none",
    threads: int | None = None,
    vectors: Output,
    table: Output,
    dimensions: Output,
) -> None:
    """Write the vectors, the mean residual norms each fit saw, and tables that describe them."""
    run = results.Run.load(prompts)
    reached = Phase.from_json(run.read(phase))
    split = _split(
        run.prompts,
        results.Residuals.load(residuals, run),
        run.by_prompt(options),
        model=load_fetched(manifest, dtype, device, quantize, threads),
        blocks=blocks,
        tolerance=tolerance,
        n_bins=n_bins,
    )
    layers = sweep_layers(reached.peak_layer, reached.final_layer, max_layers)
    clusters = run.prompts["cluster"].tolist()
    fold = np.array(questions.folds(clusters, folds, seed))
    own = directions.estimators(estimators, ranks) | directions.middle_means()
    fits = {direction: (fit, split, fold) for direction, fit in own.items()}
    fits |= _of_categories(split, run.prompts, fold, category_group)
    fold_of = dict(zip(clusters, fold, strict=True))
    fits |= _of_sources(split, fold_of, sources, source_prompts, source_residuals)
    fitted = {}
    for direction, (fit, some, some_fold) in tqdm(fits.items(), desc="directions", disable=None):

        def at_layers(part: directions.Split, fit: directions.Estimator = fit) -> torch.Tensor:
            return fit(part, layers)

        fitted[direction] = directions.cross_fit(at_layers, some, some_fold, folds)
    first, primary = next(iter(fitted.items()))
    fitted |= _parts(split.model, first, primary, null_rule)
    rows = [
        row
        for direction, one in fitted.items()
        for row in directions.describe(direction, one, primary, split, layers)
    ]

    def subspace(part: directions.Split) -> torch.Tensor:
        basis = directions.principal(part, part.peak, max(ranks))
        lacking = max(ranks) - len(basis)
        return torch.nn.functional.pad(basis, (0, 0, 0, lacking))[None]

    bases = {direction: one.unsqueeze(3) for direction, one in fitted.items()}
    found = Fitted(
        directions={
            **bases,
            _subspace(max(ranks)): directions.cross_fit(subspace, split, fold, folds),
        },
        controls=controls.matched_directions(split, primary, layers, random, seed),
        norms=directions.cross_fit(directions.mean_norms, split, fold, folds),
        layers=layers,
        fold=torch.tensor(fold),
    )
    by_rank = _dimensions(split, fold, folds, clusters, layers[:-1] or layers, draws, seed)
    found.save(run, vectors)
    run.write(table, pd.DataFrame(rows))
    run.write(dimensions, by_rank)


def _subspace(rank: int) -> Direction:
    name = "phase-subspace"
    return Direction(name=name, kind=CONTROL, estimator=name, rank=rank).as_control("rescale")


def _split(
    prompts: pd.DataFrame,
    residuals: results.Residuals,
    read: pd.DataFrame,
    *,
    model: LensModel,
    blocks: int,
    tolerance: float,
    n_bins: int,
) -> directions.Split:
    return directions.Split(
        residuals=residuals,
        logits=prompt_logits(read, len(prompts)),
        answer=prompts["answer"].to_numpy(),
        option_ids=torch.tensor(max(prompts["option_ids"], key=len)),
        model=model,
        blocks=blocks,
        tolerance=tolerance,
        n_bins=n_bins,
    )


def _of_categories(
    split: directions.Split, prompts: pd.DataFrame, fold: np.ndarray, min_group: int | None
) -> dict:
    """Direction -> estimator, the questions of a category that it is fitted on, and their folds."""
    fits, counts = {}, prompts.groupby("category")["cluster"].nunique()
    for category in sorted(counts.index[counts >= min_group] if min_group else []):
        inside = (prompts["category"] == category).to_numpy()
        direction = UPDATE_MEAN.from_source(str(Group("category", category)))
        fits[direction] = directions.update_mean, split.take(inside), fold[inside]
    return fits


def _of_sources(
    split: directions.Split,
    fold_of: dict[str, int],
    sources: list[str],
    source_prompts: list[Path],
    source_residuals: list[Path],
) -> dict:
    """As :func:`_of_categories`, of other question sets and models."""
    fits = {}
    shards = len(source_residuals) // max(len(sources), 1)
    for place, (name, path) in enumerate(zip(sources, source_prompts, strict=True)):
        source_run = results.Run.load(path)
        held = source_residuals[place * shards : (place + 1) * shards]
        other = results.Residuals.load(held, source_run)
        if other.shape[1:] != split.residuals.shape[1:]:
            log.info("%s: of another width or depth, left out", name)
            continue
        # a question of the source that is steered here, too, keeps the fold it has here
        of_other = [fold_of.get(one, -1) for one in source_run.prompts["cluster"]]
        unread = np.zeros((len(other), 0, 0)), np.zeros(len(other), int)
        source = replace(split, residuals=other, logits=unread[0], answer=unread[1])
        fits[UPDATE_MEAN.from_source(name)] = directions.update_mean, source, np.array(of_other)
    return fits


def _parts(model: LensModel, first: Direction, primary: torch.Tensor, null_rule: str) -> dict:
    """Controls: the parts of the primary direction inside and outside the null space."""
    unembedding, found = nullspace.effective_unembedding(model), {}
    parts = {"null-space": nullspace.null_part, "row-space": nullspace.row_part}
    for label, part in parts.items():
        direction = first.of_part(label)
        try:
            found[direction] = part(primary, unembedding, null_rule)
        except InputError as error:
            log.info("%s left out: %s", direction.name, error)
    return found


def _dimensions(
    split: directions.Split,
    fold: np.ndarray,
    folds: int,
    clusters: list[int],
    layers: list[int],
    draws: int,
    seed: int,
) -> pd.DataFrame:
    """Held-out readings of patched residuals by rank, and what they amount to.

    ``explained`` is the share of the squared norm of h[L] - h[layer] in those dimensions.
    """
    n, width = len(fold), split.residuals.shape[-1]
    # no more directions than the smallest fit has questions
    most = min(width, n - int(np.bincount(fold).max()))
    ranks = sorted({0, *(min(2**power, most) for power in range(width.bit_length()))})
    by_layer: list[np.ndarray] = []
    explained: dict[tuple[int, int], float] = {}
    for layer in layers:
        read, kept = _patched_readings(split, fold, folds, layer, ranks, seed)
        by_layer.append(read)
        explained |= dict(zip([(layer, rank) for rank in ranks], kept.tolist(), strict=True))
    cluster = pd.factorize(pd.Series(clusters))[0]
    found = dimensions.table(
        np.stack(by_layer),
        split.answer,
        cluster,
        layers,
        ranks,
        draws=draws,
        seed=seed,
        n_bins=split.n_bins,
    )
    places = zip(found["layer"], found["rank"], strict=True)
    return found.assign(explained=[explained[place] for place in places])


def _patched_readings(
    split: directions.Split, fold: np.ndarray, folds: int, layer: int, ranks: list[int], seed: int
) -> tuple:
    """Readings (3, n, ranks + 1, options) by whose change is put in, last those of layer L.

    Beside them the share of the squared norm of the questions' own changes at each rank.
    """
    n, n_options = len(fold), len(split.option_ids)
    lacking = np.isneginf(split.logits[:, 0])[:, None]
    read = np.empty((len(dimensions.SOURCES), n, len(ranks), n_options), np.float32)
    kept, drawn = torch.zeros(len(ranks)), np.random.default_rng(seed)
    for f in range(folds):
        fit, held = split.take(fold != f), split.take(fold == f)
        basis = directions.principal(fit, layer, ranks[-1])
        h, own = held.residuals[:, layer].float(), held.differences(layer)
        others = fit.differences(layer)
        another = others[torch.from_numpy(drawn.integers(0, len(others), len(h)))]
        moved = {
            dimensions.OWN: own,
            dimensions.MEAN: others.mean(0).expand_as(own),
            dimensions.OTHERS: another,
        }
        for place, source in enumerate(dimensions.SOURCES):
            patched = directions.patched(h, moved[source], basis, ranks)
            with torch.inference_mode():
                logits = split.model.option_logits(patched, split.option_ids)
            read[place, fold == f] = logits.cpu().numpy()
        parts = (own @ basis.T).pow(2).sum(0)
        kept += torch.stack([parts[:rank].sum() for rank in ranks])
    final = np.broadcast_to(split.logits[:, -1:], (len(read), n, 1, n_options))
    read = np.concatenate([np.where(lacking, -np.inf, read), final], 2)
    return read, kept / split.differences(layer).pow(2).sum()
