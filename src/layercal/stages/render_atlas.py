"""Render the atlas: all models and question sets side by side, beside what the paper reports."""

from __future__ import annotations

from pathlib import Path

from layercal import files
from layercal.report import atlas
from layercal.results import Results
from layercal.stages import Output


def render_atlas(
    *,
    pairs: list[str],
    metrics: list[Path],
    phases: list[Path],
    recalibrations: list[Path],
    recalibrated_phases: list[Path],
    summaries: list[Path],
    comparisons: Path,
    html: Output,
    pdf: Output,
    csv: Output,
) -> None:
    """Write the page and its figure."""
    lists = {
        "metrics": metrics,
        "phase": phases,
        "recalibration": recalibrations,
        "recalibrated_phase": recalibrated_phases,
        "summary": summaries,
        "comparisons": [comparisons] * len(pairs),
    }
    files_of = zip(pairs, *lists.values(), strict=True)
    reports = {
        pair: Results.of(**dict(zip(lists, paths, strict=True))) for pair, *paths in files_of
    }
    for report in reports.values():
        report.check()
    drawing = atlas.draw(reports)
    links = {"PDF": pdf.name, "data (CSV)": csv.name}
    files.write_atomically(pdf, drawing.pdf())
    files.write_atomically(csv, drawing.data.to_csv(index=False))
    files.write_atomically(html, atlas.page(reports, drawing, links))
