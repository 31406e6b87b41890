"""Evaluate the steered readings: dose-response with intervals, verdicts, transfer and claims."""

from pathlib import Path

import pandas as pd

from layercal import files, results, stages
from layercal.ablation import table
from layercal.metrics import readings
from layercal.metrics.phase import Phase
from layercal.model.recording import PARTS
from layercal.steering import claims, evaluation, steered, tally, verdicts
from layercal.steering.fitted import Fitted


def main() -> None:
    """Run the stage."""
    made = stages.parser("sweep", __doc__)
    made.add_argument("--prompts", type=Path, required=True)
    made.add_argument("--directions", type=Path, required=True, help="directions.safetensors")
    made.add_argument("--dimensions", type=Path, required=True, help="dimensions.parquet")
    made.add_argument("--phase", type=Path, required=True, help="phase.json")
    made.add_argument("--logits", type=Path, nargs="+", required=True, help="shards, in order")
    made.add_argument("--estimators", nargs="+", required=True, help="that a claim may rest on")
    made.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4, 8], help="of phase-pca")
    made.add_argument("--alphas", type=float, nargs="+", required=True)
    made.add_argument("--accuracy-margin", type=float, default=0.02)
    made.add_argument("--nll-margin", type=float, default=0.01, help="smaller changes are none")
    made.add_argument("--pairs", type=int, default=1, help="models by sets of the study's claims")
    made.add_argument("--min-group", type=int, default=30)
    made.add_argument("--n-bins", type=int, default=10)
    made.add_argument("--draws", type=int, default=1000)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--out", type=Path, required=True, help="sweep.parquet to write")
    made.add_argument("--summary", type=Path, required=True, help="summary.json to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Gather the shards in order and write the tidy sweep and its summary."""
    run = results.Run.load(args.prompts)
    prompts, by_rank = run.prompts, run.read(args.dimensions)
    phase = Phase.from_json(run.read(args.phase))
    sweep, without = _sweep(args, run)
    groups = {
        group: inside
        for group, inside in readings.groups(prompts).items()
        if prompts.loc[inside, "cluster"].nunique() >= args.min_group and group.kind != "subject"
    }
    parts = {readings.Group(): (sweep, phase.above_chance)}
    for group in (one for one in groups if one.kind == "language"):
        part = sweep.take(groups[group])
        parts[group] = part, phase.above_chance and verdicts.above_chance(part)
    family = claims.Family(args.pairs, len(sweep.modes))
    rows = verdicts.summarise(
        parts,
        nll_margin=args.nll_margin,
        accuracy_level=1 - family.level_of(claims.ACCURACY_KEPT),
        pairs=args.pairs,
    )
    by_name = {str(group): group for group in groups}
    fitted_on = {one: by_name.get(one.fitted_on) for one in sweep.directions}
    sources = {one: group for one, group in fitted_on.items() if group}
    of_kind = {one: inside for one, inside in groups.items() if one in sources.values()}
    summary = {
        "claims": claims.claims(phase, rows, by_rank, family),
        "verdicts": rows,
        "transfer": verdicts.transfer(sweep, of_kind, sources),
        "attribution": _without_parts(sweep, without, phase.final_layer),
        "reliability": verdicts.reliability(sweep, args.n_bins),
    }
    run.write(args.out, evaluation.dose_response(sweep))
    run.write(args.summary, summary)
    files.keep_shards(args.logits[0].parent, "logits", len(args.logits))
    for claim in summary["claims"]:
        stages.log.info("%(claim)s: %(outcome)s. %(evidence)s", claim)


def _sweep(args, run: results.Run):
    """The sweep, and the readings without parts, (n, blocks, 2, options), if there are any."""
    prompts, fitted = run.prompts, Fitted.load(run, args.directions)
    read, sums, without = steered.load(run, args.logits)
    fold = fitted.fold.numpy()
    sweep = evaluation.Sweep(
        steered=read,
        controls=tally.Tally(
            sums=sums,
            cell=tally.cells(prompts, fold),
            fold=fold,
            alphas=args.alphas,
            accuracy_margin=args.accuracy_margin,
        ),
        answer=prompts["answer"].to_numpy(),
        fold=fold,
        cluster=pd.factorize(prompts["cluster"])[0],
        question=pd.factorize(prompts["question_id"])[0],
        norms=fitted.norms.diagonal().mean(-1).numpy(),
        directions=[one.direction for one in fitted.variants()],
        layers=fitted.layers,
        alphas=args.alphas,
        accuracy_margin=args.accuracy_margin,
        n_bins=args.n_bins,
        draws=args.draws,
        seed=args.seed,
    )
    return sweep, without


def _without_parts(sweep: evaluation.Sweep, without, final: int) -> list[dict]:
    """Ablations of attention and MLP of each block, from the last."""
    if without is None:
        return []
    before = sweep.unsteered(sweep.modes[0], len(sweep.layers) - 1)
    named = {
        table.Ablated(name=f"{part} {block}", what="block", block=block, part=part): logits
        for block, by_part in enumerate(without.swapaxes(0, 1), final - without.shape[1] + 1)
        for part, logits in zip(PARTS, by_part.swapaxes(0, 1), strict=True)
    }
    return table.ablations(sweep, before, named)


if __name__ == "__main__":
    main()
