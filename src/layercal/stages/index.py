"""Render the entry page: every report of the study with its headline numbers."""

from pathlib import Path

from layercal import files, stages
from layercal.report import index
from layercal.results import Results


def main() -> None:
    """Run the stage."""
    made = stages.parser("index", __doc__)
    made.add_argument("--pairs", nargs="+", required=True, help="model/questions of each report")
    made.add_argument("--phases", type=Path, nargs="+", required=True, help="phase.json of each")
    made.add_argument("--out", type=Path, required=True)
    stages.run(stage, made)


def stage(args) -> None:
    """Write the page."""
    paths = zip(args.pairs, args.phases, strict=True)
    phases = {pair: Results.of(phase=phase).phase for pair, phase in paths}
    files.write_atomically(args.out, index.page(phases))


if __name__ == "__main__":
    main()
