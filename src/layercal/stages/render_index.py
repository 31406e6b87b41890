"""Render the entry page: every report of the study with its headline numbers."""

from __future__ import annotations

from pathlib import Path

from layercal import files
from layercal.report import index
from layercal.results import Results
from layercal.stages import Output


def render_index(
    *,
    pairs: list[str],
    phases: list[Path],
    recalibrations: list[Path],
    recalibrated_phases: list[Path],
    html: Output,
) -> None:
    """Write the page."""
    names = "phase", "recalibration", "recalibrated_phase"
    paths = zip(phases, recalibrations, recalibrated_phases, strict=True)
    reports = [Results.of(**dict(zip(names, each, strict=True))) for each in paths]
    files.write_atomically(html, index.page(dict(zip(pairs, reports, strict=True))))
