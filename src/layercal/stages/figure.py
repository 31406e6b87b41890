"""Draw the main figure, the layer curves, as PNG and PDF."""

import json
from pathlib import Path

import pandas as pd

from layercal import figures, stages


def main() -> None:
    """Run the stage."""
    made = stages.parser("figure", __doc__)
    made.add_argument("--metrics", type=Path, required=True)
    made.add_argument("--phase", type=Path, required=True)
    made.add_argument("--png", type=Path, required=True)
    made.add_argument("--pdf", type=Path, required=True)
    stages.run(stage, made)


def stage(args) -> None:
    """Save without a date, so that an unchanged figure is an unchanged file."""
    drawn = figures.layer_curves(
        pd.read_parquet(args.metrics), json.loads(args.phase.read_text()), args.png.stem
    )
    drawn.savefig(args.png)
    drawn.savefig(args.pdf, metadata={"CreationDate": None})


if __name__ == "__main__":
    main()
