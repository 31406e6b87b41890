"""Draw the workflow's rules and what they hand on, from Snakemake's own rule graph."""

import re
import sys
from pathlib import Path

from layercal import stages
from layercal.report.figures import study


def main() -> None:
    """Run the stage."""
    made = stages.parser("rulegraph", __doc__)
    made.add_argument("--png", type=Path, required=True, help="to write")
    made.add_argument("--pdf", type=Path, required=True, help="to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Read what ``snakemake --rulegraph dot`` says from standard input."""
    said = sys.stdin.read()
    names = dict(re.findall(r'(\d+)\[label = "([^"]+)"', said))
    edges = [(names[a], names[b]) for a, b in re.findall(r"(\d+) -> (\d+)", said)]
    # without the target, which makes nothing
    drawn = study.plot_rules([(made, read) for made, read in edges if read != "reports"])
    drawn.savefig(args.png)
    drawn.savefig(args.pdf, metadata={"CreationDate": None})


if __name__ == "__main__":
    main()
