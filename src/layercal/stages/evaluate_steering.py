"""Evaluate the steered readings: dose-response with intervals, verdicts, transfer and claims."""

from __future__ import annotations

from pathlib import Path

from layercal import files, results
from layercal.metrics import readings
from layercal.metrics.phase import Phase
from layercal.stages import Output, log
from layercal.steering import abstaining, claims, evaluation, steered, tally, verdicts
from layercal.steering.fitted import Fitted


def evaluate_steering(
    *,
    prompts: Path,
    directions: Path,
    dimensions: Path,
    phase: Path,
    logits: list[Path],
    alphas: list[float],
    accuracy_margin: float = 0.02,
    nll_margin: float = 0.01,
    pairs: int = 1,
    branches: int = 1,
    min_group: int = 30,
    n_bins: int = 10,
    draws: int = 1000,
    seed: int = 0,
    sweep: Output,
    summary: Output,
) -> None:
    """Gather the shards in order and write the tidy sweep and its summary."""
    run = results.Run.load(prompts)
    reached, by_rank = Phase.from_json(run.read(phase)), run.read(dimensions)
    swept = _sweep(
        run,
        Fitted.load(run, directions),
        logits,
        alphas=alphas,
        accuracy_margin=accuracy_margin,
        n_bins=n_bins,
        draws=draws,
        seed=seed,
    )
    groups = readings.large_groups(run.prompts, min_group)
    parts = {readings.Group(): (swept, reached.above_chance)}
    for group in (one for one in groups if one.kind == "language"):
        part = swept.take(groups[group])
        parts[group] = part, reached.above_chance and verdicts.above_chance(part)
    family = claims.Family(branches)
    rows = verdicts.summarise(
        parts,
        nll_margin=nll_margin,
        accuracy_level=1 - family.level_of(claims.ACCURACY_KEPT),
        pairs=pairs,
    )
    by_name: dict[str | None, readings.Group] = {str(group): group for group in groups}
    fitted_on = {one: by_name.get(one.fitted_on) for one in swept.directions}
    sources = {one: group for one, group in fitted_on.items() if group}
    of_kind = {one: inside for one, inside in groups.items() if one in sources.values()}
    said = {
        "claims": claims.claims(reached, rows, by_rank, family),
        "verdicts": rows,
        "transfer": verdicts.transfer(swept, of_kind, sources),
        "reliability": verdicts.reliability(swept, n_bins),
        **abstaining.summarise(swept),
    }
    run.write(sweep, evaluation.dose_response(swept))
    run.write(summary, said)
    files.keep_shards(logits[0].parent, "logits", len(logits))
    for claim in said["claims"]:
        log.info("%(claim)s: %(outcome)s. %(evidence)s", claim)


def _sweep(
    run: results.Run,
    fitted: Fitted,
    logits: list[Path],
    *,
    alphas: list[float],
    accuracy_margin: float,
    n_bins: int,
    draws: int,
    seed: int,
) -> evaluation.Sweep:
    """All readings of the shards, in the order of the prompts."""
    prompts, fold = run.prompts, fitted.fold.numpy()
    read, sums = steered.load(run, logits)
    return evaluation.Sweep.of_prompts(
        prompts,
        steered=read,
        controls=tally.Tally(
            sums=sums,
            cell=tally.cells(prompts, fold),
            fold=fold,
            alphas=alphas,
            accuracy_margin=accuracy_margin,
        ),
        fold=fold,
        norms=fitted.norms.diagonal().mean(-1).numpy(),
        directions=[one.direction for one in fitted.variants()],
        layers=fitted.layers,
        alphas=alphas,
        accuracy_margin=accuracy_margin,
        n_bins=n_bins,
        draws=draws,
        seed=seed,
    )
