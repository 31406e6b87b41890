"""Draw every figure of one report: PDF, PNG, the rows it shows as CSV; claims as LaTeX."""

from pathlib import Path

from layercal import files, stages
from layercal.report import figures, tables
from layercal.report.figures import curves
from layercal.results import Results


def main() -> None:
    """Run the stage."""
    made = stages.parser("figure", __doc__)
    for table in figures.TABLES:
        made.add_argument(f"--{table}", type=Path, required=True)
    made.add_argument("--title", required=True, help="of the layer curves")
    made.add_argument("--png", type=Path, required=True, help="the layer curves, to write")
    for kind in ("pdf", "png", "csv"):
        written = f"{{figure}}.{kind}, to write"
        made.add_argument(f"--{kind}s", type=Path, nargs="+", required=True, help=written)
    made.add_argument("--claims", type=Path, required=True, help="table (LaTeX) to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Draw each figure once, into files that reports and papers show."""
    results = Results.of(**{name: getattr(args, name) for name in figures.TABLES})
    results.check(*figures.TABLES)
    for pdf, png, csv in zip(args.pdfs, args.pngs, args.csvs, strict=True):
        drawing = figures.draw(pdf.stem, results)
        files.write_atomically(pdf, drawing.pdf())
        files.write_atomically(png, drawing.png())
        files.write_atomically(csv, drawing.data.to_csv(index=False))
    titled = curves.plot_layer_curves(curves.phase_rows(results), results.phase, args.title)
    titled.savefig(args.png)
    files.write_atomically(args.claims, tables.claims_latex(results.claims))


if __name__ == "__main__":
    main()
