"""Fit calibration directions, cross-fitted, with their controls; say how many dimensions matter."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import safe_open
from tqdm import tqdm

from layercal import InputError, results, stages
from layercal.ablation import nullspace
from layercal.metrics.phase import Phase, sweep_layers
from layercal.metrics.readings import Group
from layercal.sources import questions
from layercal.steering import controls, dimensions, directions
from layercal.steering.fitted import CONTROL, ESTIMATOR, Direction, Fitted


def main() -> None:
    """Run the stage."""
    made = stages.parser("directions", __doc__)
    stages.add_model_options(made)
    made.add_argument("--prompts", type=Path, required=True)
    made.add_argument("--residuals", type=Path, nargs="+", required=True, help="shards, in order")
    made.add_argument("--options", type=Path, required=True, help="options.parquet")
    made.add_argument("--phase", type=Path, required=True, help="phase.json")
    made.add_argument(
        "--estimators", nargs="+", choices=[*directions.ESTIMATORS, "phase-pca"], required=True
    )
    made.add_argument("--blocks", type=int, default=3, help="block updates, from the last")
    made.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], help="of phase-pca")
    made.add_argument("--null-rule", default="energy=0.999", help="size of the null space")
    made.add_argument("--max-layers", type=int, default=8, help="layers to steer at")
    made.add_argument("--min-group", type=int, default=None, help="fit each category this large")
    made.add_argument("--sources", nargs="*", default=[], help="names of other sets and models")
    made.add_argument("--source-prompts", type=Path, nargs="*", default=[])
    made.add_argument("--source-residuals", type=Path, nargs="*", default=[], help="shards of each")
    made.add_argument("--folds", type=int, default=5)
    made.add_argument("--random", type=int, default=200, help="matched control directions")
    made.add_argument("--tolerance", type=float, default=0.02, help="of the decision layer")
    made.add_argument("--n-bins", type=int, default=10)
    made.add_argument("--draws", type=int, default=1000)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, required=True, help="directions.safetensors to write")
    made.add_argument("--table", type=Path, required=True, help="directions.parquet to write")
    made.add_argument("--dimensions", type=Path, required=True, help="dimensions.parquet to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Write the vectors, the mean residual norms each fit saw, and tables that describe them."""
    run = results.Run.load(args.prompts)
    prompts, phase = run.prompts, Phase.from_json(run.read(args.phase))
    split = _split(args, run)
    layers = sweep_layers(phase.peak_layer, phase.final_layer, args.max_layers)
    clusters = prompts["cluster"].tolist()
    fold = np.array(questions.folds(clusters, args.folds, args.seed))
    fits = _fits(args, split, prompts, fold, dict(zip(clusters, fold, strict=True)))
    fitted = {}
    for direction, (fit, some, some_fold) in tqdm(fits.items(), desc="directions", disable=None):

        def at_layers(part, fit=fit):
            return fit(part, layers)

        fitted[direction] = directions.cross_fit(at_layers, some, some_fold, args.folds)
    first, primary = next(iter(fitted.items()))
    fitted |= _parts(args, split.model, first, primary)
    rows = [
        row
        for direction, one in fitted.items()
        for row in directions.describe(direction, one, primary, split, layers)
    ]

    def subspace(part):
        basis = directions.principal(part, part.peak, max(args.ranks))
        lacking = max(args.ranks) - len(basis)
        return torch.nn.functional.pad(basis, (0, 0, 0, lacking))[None]

    bases = {direction: one.unsqueeze(3) for direction, one in fitted.items()}
    found = Fitted(
        directions={
            **bases,
            _subspace(max(args.ranks)): directions.cross_fit(subspace, split, fold, args.folds),
        },
        controls=controls.matched_directions(split, primary, layers, args.random, args.seed),
        norms=directions.cross_fit(directions.mean_norms, split, fold, args.folds),
        layers=layers,
        fold=torch.tensor(fold),
        written=_mean_written(args.residuals, len(prompts)),
    )
    by_rank = _dimensions(args, split, fold, clusters, layers[:-1] or layers)
    found.save(run, args.out)
    run.write(args.table, pd.DataFrame(rows))
    run.write(args.dimensions, by_rank)


def _subspace(rank: int) -> Direction:
    name = "phase-subspace"
    return Direction(name=name, kind=CONTROL, estimator=name, rank=rank).as_control("rescale")


def _mean_written(shards: list[Path], n: int) -> torch.Tensor | None:
    """Mean over all prompts of what each block writes, (L, 2, d), if it was recorded."""
    written = []
    for path in shards:
        with safe_open(path, "pt") as shard:
            if "written" in shard.keys():  # noqa: SIM118
                written.append(shard.get_tensor("written"))
    return (sum(written) / n).float() if written else None


def _split(args, run: results.Run) -> directions.Split:
    prompts, options = run.prompts, run.by_prompt(args.options)
    letters = [name for name in options if name.startswith("logit_")]
    return directions.Split(
        residuals=results.Residuals.load(args.residuals, run),
        logits=options[letters].to_numpy().reshape(len(prompts), -1, len(letters)),
        answer=prompts["answer"].to_numpy(),
        option_ids=torch.tensor(max(prompts["option_ids"], key=len)),
        model=stages.load_model(args),
        blocks=args.blocks,
        tolerance=args.tolerance,
        n_bins=args.n_bins,
    )


def _fits(args, split, prompts, fold, fold_of: dict[str, int]) -> dict:
    """Direction -> estimator, the questions that it is fitted on, and their folds."""
    own = directions.estimators(args.estimators, args.ranks) | directions.middle_means()
    fits = {direction: (fit, split, fold) for direction, fit in own.items()}
    mean = Direction(name="update-mean", kind=ESTIMATOR, estimator="update-mean")
    counts = prompts.groupby("category")["cluster"].nunique()
    for category in sorted(counts.index[counts >= args.min_group] if args.min_group else []):
        inside = (prompts["category"] == category).to_numpy()
        direction = mean.from_source(str(Group("category", category)))
        fits[direction] = directions.update_mean, split.take(inside), fold[inside]
    shards = len(args.source_residuals) // max(len(args.sources), 1)
    for place, (name, path) in enumerate(zip(args.sources, args.source_prompts, strict=True)):
        source_run = results.Run.load(path)
        held = args.source_residuals[place * shards : (place + 1) * shards]
        other = results.Residuals.load(held, source_run)
        if other.shape[1:] != split.residuals.shape[1:]:
            stages.log.info("%s: of another width or depth, left out", name)
            continue
        # a question of the source that is steered here, too, keeps the fold it has here
        of_other = [fold_of.get(one, -1) for one in source_run.prompts["cluster"]]
        unread = np.zeros((len(other), 0, 0)), np.zeros(len(other), int)
        source = replace(split, residuals=other, logits=unread[0], answer=unread[1])
        fits[mean.from_source(name)] = directions.update_mean, source, np.array(of_other)
    return fits


def _parts(args, model, first: Direction, primary: torch.Tensor) -> dict:
    """Controls: the parts of the primary direction inside and outside the null space."""
    unembedding, found = nullspace.effective_unembedding(model), {}
    parts = {"null-space": nullspace.null_part, "row-space": nullspace.row_part}
    for label, part in parts.items():
        direction = first.of_part(label)
        try:
            found[direction] = part(primary, unembedding, args.null_rule)
        except InputError as error:
            stages.log.info("%s left out: %s", direction.name, error)
    return found


def _dimensions(args, split, fold, clusters, layers) -> pd.DataFrame:
    """Held-out readings of patched residuals by rank, and what they amount to.

    ``explained`` is the share of the squared norm of h[L] - h[layer] in those dimensions.
    """
    n, width = len(fold), split.residuals.shape[-1]
    # no more directions than the smallest fit has questions
    most = min(width, n - int(np.bincount(fold).max()))
    ranks = sorted({0, *(min(2**power, most) for power in range(width.bit_length()))})
    by_layer, explained = [], {}
    for layer in layers:
        read, kept = _patched_readings(args, split, fold, layer, ranks)
        by_layer.append(read)
        explained |= dict(zip([(layer, rank) for rank in ranks], kept.tolist(), strict=True))
    cluster = pd.factorize(pd.Series(clusters))[0]
    bootstrap = args.draws, args.seed, args.n_bins
    stacked = np.stack(by_layer)
    found = dimensions.table(stacked, split.answer, cluster, layers, ranks, *bootstrap)
    places = zip(found["layer"], found["rank"], strict=True)
    return found.assign(explained=[explained[place] for place in places])


def _patched_readings(args, split, fold, layer: int, ranks: list[int]) -> tuple:
    """Readings (3, n, ranks + 1, options) by whose change is put in, last those of layer L.

    Beside them the share of the squared norm of the questions' own changes at each rank.
    """
    n, n_options = len(fold), len(split.option_ids)
    lacking = np.isneginf(split.logits[:, 0])[:, None]
    read = np.empty((len(dimensions.SOURCES), n, len(ranks), n_options), np.float32)
    kept, drawn = torch.zeros(len(ranks)), np.random.default_rng(args.seed)
    for f in range(args.folds):
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


if __name__ == "__main__":
    main()
