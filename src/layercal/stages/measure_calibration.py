"""Compute calibration metrics per layer and group, and decide on the correction phase."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd

from layercal import files, results
from layercal.metrics import readings
from layercal.metrics.phase import Phase, of_readings
from layercal.stages import Output, log

# what DVC prints, compares and draws, and Git keeps
NUMBERS = (
    "n",
    "accuracy_final",
    "ece_final",
    "ece_peak",
    "correction",
    "decision_layer",
    "peak_layer",
    "final_layer",
)
CURVES = ("accuracy", "confidence", "ece")


def measure_calibration(
    *,
    prompts: Path,
    options: Path,
    tuned: Path,
    n_bins: list[int],
    min_count: list[int],
    min_group: int = 30,
    draws: int = 1000,
    tolerance: float = 0.02,
    seed: int = 0,
    threads: int = 1,
    metrics: Output,
    phase: Output,
    phases: Output,
    numbers: Output,
    curves: Output,
) -> None:
    """Write the tidy metric table, the phase, and that of each group but subjects."""
    run = results.Run.load(prompts)
    asked = run.prompts.drop_duplicates("question_id")
    groups, cluster = readings.groups(asked), pd.factorize(asked["cluster"])[0]
    tables, found = [], {}
    for lens, path in (("logit", options), ("tuned", tuned)):
        orders = readings.from_options(run.by_prompt(path), cluster)
        for order, read in orders.items():
            table = readings.group_table(
                read,
                groups,
                min_group,
                n_bins=n_bins,
                min_count=min_count,
                draws=draws,
                seed=seed,
                threads=threads,
            )
            tables.append(table.assign(lens=lens, order=order))
        order, read = next(iter(orders.items()))
        for group, inside in readings.large_groups(asked, min_group).items():
            part = read.take(inside)
            found[lens, group] = of_readings(
                part, draws=draws, seed=seed, tolerance=tolerance, n_bins=n_bins[0]
            )
    whole = found["logit", readings.Group()]
    whole = replace(whole, order=order, tuned=found["tuned", readings.Group()])
    table = pd.concat(tables)
    table["primary"] = table["order"].eq(order) & table["n_bins"].isin([0, n_bins[0]])
    run.write(metrics, table)
    run.write(phase, whole.to_json())
    run.write(phases, _by_group(found))
    headline = {name: getattr(whole, name) for name in NUMBERS}
    files.write_atomically(numbers, json.dumps(headline, indent=2) + "\n")
    files.write_atomically(curves, _curves(table).to_csv())
    log.info("%s", whole.reason)


def _by_group(found: dict[tuple[str, readings.Group], Phase]) -> pd.DataFrame:
    """One row a lens and group, each at its own level: they describe, and are not adjusted."""
    rows = [
        {"lens": lens, **group.columns(), **phase.to_json()}
        for (lens, group), phase in found.items()
    ]
    return pd.DataFrame(rows)


def _curves(table: pd.DataFrame) -> pd.DataFrame:
    """One row a layer, through the logit lens, over all questions."""
    shown = results.select(table, CURVES)
    return shown.pivot_table(index="layer", columns="metric", values="value")[[*CURVES]]
