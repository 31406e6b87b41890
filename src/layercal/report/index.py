"""The entry page: every report of the study with its headline numbers."""

from __future__ import annotations

from layercal.report import pages, words
from layercal.results import Results


def page(results: dict[str, Results]) -> str:
    """Render the page; names and texts are escaped.

    Parameters
    ----------
    results : dict of Results
        By model/questions.
    """
    reports = [
        (*pair.split("/"), each.phase, words.correction(each)) for pair, each in results.items()
    ]
    return pages.render("index.html", title="Calibration over layers", reports=reports)
