"""Draw the workflow's rules and what they hand on, from Snakemake's own rule graph."""

from __future__ import annotations

import re
import sys

from layercal.report.figures import study
from layercal.stages import Output


def draw_workflow(
    *,
    png: Output,
    pdf: Output,
) -> None:
    """Read what ``snakemake --rulegraph dot`` says from standard input."""
    said = sys.stdin.read()
    names = dict(re.findall(r'(\d+)\[label = "([^"]+)"', said))
    edges = [(names[a], names[b]) for a, b in re.findall(r"(\d+) -> (\d+)", said)]
    # without the target, which makes nothing
    drawn = study.plot_rules([(made, read) for made, read in edges if not read.endswith("reports")])
    drawn.savefig(png)
    drawn.savefig(pdf, metadata={"CreationDate": None})
