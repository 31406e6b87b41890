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
    summaries: list[Path],
    html: Output,
    pdf: Output,
    csv: Output,
) -> None:
    """Write the page and its figure."""
    paths = zip(pairs, metrics, phases, summaries, strict=True)
    reports = {
        pair: Results.of(metrics=metrics, phase=phase, summary=summary)
        for pair, metrics, phase, summary in paths
    }
    for report in reports.values():
        report.check()
    drawing = atlas.draw(reports)
    links = {"PDF": pdf.name, "data (CSV)": csv.name}
    files.write_atomically(pdf, drawing.pdf())
    files.write_atomically(csv, drawing.data.to_csv(index=False))
    files.write_atomically(html, atlas.page(reports, drawing, links))
