"""The entry page: every report of the study with its headline numbers."""

from __future__ import annotations

from layercal.report import pages


def page(phases: dict[str, dict]) -> str:
    """Render the page; names and texts are escaped.

    Parameters
    ----------
    phases : dict of dict
        Model/questions -> ``phase.json``.
    """
    reports = [(*pair.split("/"), phase) for pair, phase in phases.items()]
    return pages.render("index.html", title="Calibration over layers", reports=reports)
