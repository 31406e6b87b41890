"""Draw every figure of one report for papers: PDF, the rows it shows as CSV, claims as LaTeX."""

from pathlib import Path

from layercal import files, stages
from layercal.report import figures, plates


def main() -> None:
    """Run the stage."""
    made = stages.parser("figure", __doc__)
    for table in plates.TABLES:
        made.add_argument(f"--{table}", type=Path, required=True)
    made.add_argument("--title", required=True, help="of the layer curves")
    made.add_argument("--png", type=Path, required=True, help="the layer curves, to write")
    made.add_argument("--pdfs", type=Path, nargs="+", required=True, help="{figure}.pdf, to write")
    made.add_argument("--csvs", type=Path, nargs="+", required=True, help="{figure}.csv, to write")
    made.add_argument("--claims", type=Path, required=True, help="table (LaTeX) to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Save without a date, so that an unchanged figure is an unchanged file."""
    tables = plates.load(**{name: getattr(args, name) for name in plates.TABLES})
    for pdf, csv in zip(args.pdfs, args.csvs, strict=True):
        plate = plates.draw(pdf.stem, tables)
        plate.figure.savefig(pdf, metadata={"CreationDate": None})
        files.write_atomically(csv, plate.data.to_csv(index=False))
    figures.layer_curves(tables.metrics, tables.phase, args.title).savefig(args.png)
    files.write_atomically(args.claims, latex(tables.summary))


def latex(summary: dict) -> str:
    """Give the claims as a table for the LaTeX package booktabs.

    Parameters
    ----------
    summary : dict
        ``summary.json``.
    """
    shown = plates.claims(summary)
    columns = r"p{.3\linewidth}lp{.25\linewidth}rrr"
    return shown.to_latex(index=False, escape=True, column_format=columns)


if __name__ == "__main__":
    main()
