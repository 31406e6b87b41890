"""Evaluate the steered readings: dose-response with intervals, verdicts, transfer and claims."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from layercal import files, results
from layercal.metrics import readings, scoring
from layercal.model.recording import PARTS
from layercal.stages import Output, log
from layercal.steering import claims, evaluation, interventions, tally, verdicts
from layercal.steering.directions import FROM
from layercal.steering.directions import estimators as fitted_by


def evaluate_steering(
    *,
    prompts: Path,
    directions: Path,
    dimensions: Path,
    phase: Path,
    logits: list[Path],
    estimators: list[str],
    ranks: list[int],
    alphas: list[float],
    accuracy_margin: float = 0.02,
    nll_margin: float = 0.01,
    pairs: int = 1,
    min_group: int = 30,
    n_bins: int = 10,
    draws: int = 1000,
    seed: int = 0,
    sweep: Output,
    summary: Output,
) -> None:
    """Gather the shards in order and write the tidy sweep and its summary."""
    run = results.Run.load(prompts)
    reached, by_rank = run.read(phase), run.read(dimensions)
    steered, without = _sweep(
        run,
        run.read(directions),
        logits,
        alphas=alphas,
        accuracy_margin=accuracy_margin,
        n_bins=n_bins,
        draws=draws,
        seed=seed,
    )
    chosen = list(fitted_by(estimators, ranks))
    above_chance = reached["above_chance"]
    groups = {
        name: inside
        for name, inside in readings.groups(run.prompts).items()
        if run.prompts.loc[inside, "cluster"].nunique() >= min_group
        and not name.startswith("subject:")
    }
    parts = {"all": (steered, above_chance)}
    for name in (one for one in groups if one.startswith("language:")):
        part = steered.take(groups[name])
        parts[name] = part, above_chance and verdicts.above_chance(part)
    family = claims.Family(pairs, len(steered.modes))
    rows = verdicts.summarise(
        parts,
        chosen,
        nll_margin=nll_margin,
        accuracy_level=1 - family.level_of(claims.ACCURACY_KEPT),
        pairs=pairs,
    )
    fitted_on = {
        name: source for name in steered.variants if (source := name.partition(FROM)[2]) in groups
    }
    of_kind = {name: one for name, one in groups.items() if name in fitted_on.values()}
    said = {
        "claims": claims.claims(reached, rows, by_rank, family),
        "verdicts": rows,
        "transfer": verdicts.transfer(steered, of_kind, fitted_on),
        "attribution": _without_parts(steered, without, reached),
        "reliability": verdicts.reliability(steered, chosen[0], n_bins),
    }
    run.write(sweep, evaluation.dose_response(steered))
    run.write(summary, said)
    files.keep_shards(logits[0].parent, "logits", len(logits))
    for claim in said["claims"]:
        log.info("%(claim)s: %(outcome)s. %(evidence)s", claim)


def _sweep(
    run: results.Run,
    fitted: dict,
    logits: list[Path],
    *,
    alphas: list[float],
    accuracy_margin: float,
    n_bins: int,
    draws: int,
    seed: int,
) -> tuple:
    """The sweep, and the readings without parts, (n, blocks, 2, options), if there are any."""
    prompts = run.prompts
    shards, order = run.shards(logits)
    names = [name for name in shards[0] if name != "rows"]
    read = {
        name: sum(one[name] for one in shards).double() * tally.UNIT
        if name.endswith(interventions.CONTROLS)
        else torch.cat([one[name] for one in shards])[order]
        for name in names
    }
    read = {name: one.numpy() for name, one in read.items()}
    without = read.pop("without", None)

    def of_kind(ending: str) -> dict:
        names = [name for name in read if name.endswith(ending)]
        return {name.removesuffix(ending): read.pop(name) for name in names}

    growth, sums = of_kind(interventions.GROWTH), of_kind(interventions.CONTROLS)
    fold, variants = fitted["fold"].numpy(), interventions.variants(fitted)
    sweep = evaluation.Sweep(
        logits=read,
        growth=growth,
        controls=tally.Tally(
            sums=sums,
            cell=tally.cells(prompts, fold),
            fold=fold,
            alphas=alphas,
            accuracy_margin=accuracy_margin,
        ),
        answer=prompts["answer"].to_numpy(),
        fold=fold,
        cluster=pd.factorize(prompts["cluster"])[0],
        question=pd.factorize(prompts["question_id"])[0],
        norms=fitted["norms"].diagonal().mean(-1).numpy(),
        variants=[one.name for one in variants],
        not_in_lens=[one.name for one in variants if one.intervention == "rotate"],
        layers=fitted["layers"].tolist(),
        alphas=alphas,
        accuracy_margin=accuracy_margin,
        n_folds=len(fitted["norms"]),
        n_bins=n_bins,
        draws=draws,
        seed=seed,
    )
    return sweep, without


def _without_parts(sweep: evaluation.Sweep, without, phase: dict) -> list[dict]:
    """Ablations of attention and MLP of each block, from the last."""
    if without is None:
        return []
    before = sweep.unsteered(sweep.modes[0], len(sweep.layers) - 1)
    blocks = range(phase["final_layer"] - without.shape[1] + 1, phase["final_layer"] + 1)
    named = {
        f"{part} {block}": without[:, row, column]
        for row, block in enumerate(blocks)
        for column, part in enumerate(PARTS)
    }
    return scoring.ablations(sweep, before, named)
