"""Render the atlas: all models and question sets side by side, beside what the paper reports."""

from pathlib import Path

from layercal import files, stages
from layercal.report import atlas
from layercal.results import Results


def main() -> None:
    """Run the stage."""
    made = stages.parser("atlas", __doc__)
    made.add_argument("--pairs", nargs="+", required=True, help="model/questions of each")
    made.add_argument("--metrics", type=Path, nargs="+", required=True, help="metrics.parquet")
    made.add_argument("--phases", type=Path, nargs="+", required=True, help="phase.json")
    made.add_argument("--summaries", type=Path, nargs="+", required=True, help="summary.json")
    made.add_argument("--out", type=Path, required=True, help="page to write")
    made.add_argument("--pdf", type=Path, required=True, help="its figure, to write")
    made.add_argument("--csv", type=Path, required=True, help="what the figure shows, to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Write the page and its figure."""
    paths = zip(args.pairs, args.metrics, args.phases, args.summaries, strict=True)
    reports = {
        pair: Results.of(metrics=metrics, phase=phase, summary=summary)
        for pair, metrics, phase, summary in paths
    }
    for report in reports.values():
        report.check("metrics", "phase", "summary")
    drawing = atlas.draw(reports)
    links = {"PDF": args.pdf.name, "data (CSV)": args.csv.name}
    files.write_atomically(args.pdf, drawing.pdf())
    files.write_atomically(args.csv, drawing.data.to_csv(index=False))
    files.write_atomically(args.out, atlas.page(reports, drawing, links))


if __name__ == "__main__":
    main()
