"""Draw every figure of one report: PDF, PNG, the rows it shows as CSV; claims as LaTeX."""

from __future__ import annotations

from pathlib import Path

from layercal import files
from layercal.report import figures, tables
from layercal.report.figures import curves
from layercal.results import Results
from layercal.stages import Output


def draw_figures(
    *,
    model: str,
    questions: str,
    prompts: Path,
    options: Path,
    metrics: Path,
    phase: Path,
    recalibration: Path,
    recalibrated_phase: Path,
    rivals: Path,
    directions: Path,
    dimensions: Path,
    nullspace: Path,
    neurons: Path,
    sweep: Path,
    summary: Path,
    claims: Output,
    png: Output,
    pdfs: list[Output],
    pngs: list[Output],
    csvs: list[Output],
) -> None:
    """Draw each figure once, into files that reports and papers show."""
    results = Results.of(
        prompts=prompts,
        options=options,
        metrics=metrics,
        phase=phase,
        recalibration=recalibration,
        recalibrated_phase=recalibrated_phase,
        rivals=rivals,
        directions=directions,
        dimensions=dimensions,
        nullspace=nullspace,
        neurons=neurons,
        sweep=sweep,
        summary=summary,
    )
    results.check(*figures.TABLES)
    for pdf, image, csv in zip(pdfs, pngs, csvs, strict=True):
        drawing = figures.draw(pdf.stem, results)
        files.write_atomically(pdf, drawing.pdf())
        files.write_atomically(image, drawing.png())
        files.write_atomically(csv, drawing.data.to_csv(index=False))
    title = f"{model} on {questions}"
    titled = curves.plot_layer_curves(curves.phase_rows(results), results.phase, title)
    titled.savefig(png)
    files.write_atomically(claims, tables.claims_latex(results.claims))
