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
    html: Output,
) -> None:
    """Write the page."""
    paths = zip(pairs, phases, strict=True)
    reached = {pair: Results.of(phase=phase).phase for pair, phase in paths}
    files.write_atomically(html, index.page(reached))
