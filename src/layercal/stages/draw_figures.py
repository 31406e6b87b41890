"""Draw every figure of one report for papers: PDF, the rows it shows as CSV, claims as LaTeX."""

from __future__ import annotations

from pathlib import Path

from layercal import files
from layercal.report import figures, plates
from layercal.stages import Output


def draw_figures(
    *,
    model: str,
    questions: str,
    prompts: Path,
    options: Path,
    metrics: Path,
    phase: Path,
    directions: Path,
    dimensions: Path,
    nullspace: Path,
    neurons: Path,
    sweep: Path,
    summary: Path,
    claims: Output,
    png: Output,
    pdfs: list[Output],
    csvs: list[Output],
) -> None:
    """Save without a date, so that an unchanged figure is an unchanged file."""
    tables = plates.load(
        prompts=prompts,
        options=options,
        metrics=metrics,
        phase=phase,
        directions=directions,
        dimensions=dimensions,
        nullspace=nullspace,
        neurons=neurons,
        sweep=sweep,
        summary=summary,
    )
    for pdf, csv in zip(pdfs, csvs, strict=True):
        plate = plates.draw(pdf.stem, tables)
        plate.figure.savefig(pdf, metadata={"CreationDate": None})
        files.write_atomically(csv, plate.data.to_csv(index=False))
    title = f"{model} on {questions}"
    figures.layer_curves(tables.metrics, tables.phase, title).savefig(png)
    files.write_atomically(claims, latex(tables.summary))


def latex(summary: dict) -> str:
    """Give the claims as a table for the LaTeX package booktabs.

    Parameters
    ----------
    summary : dict
        ``summary.json``.
    """
    shown = plates.claims(summary)
    columns = r"p{.3\linewidth}lp{.25\linewidth}rrr"
    return shown.to_latex(index=False, escape=True, column_format=columns)
