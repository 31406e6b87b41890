"""Rendered pages, complete by themselves, so that they open without a network."""

from __future__ import annotations

import base64
import io
import re

import jinja2
import pandas as pd
from markupsafe import Markup
from PIL.PngImagePlugin import PngImageFile

from layercal.report import NOTHING

OUTCOMES = ("confirmed", "refuted", "undecided", "lowered", "raised")  # what style.css colours


def _said(cell: object) -> str:
    """Text of a table's cell; a missing value is a dash."""
    if isinstance(cell, float):
        return "–" if pd.isna(cell) else f"{cell:.3f}"
    return str(cell)


_TEMPLATES = jinja2.Environment(
    loader=jinja2.PackageLoader("layercal.report"),
    autoescape=lambda name: str(name).endswith(".html"),
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
)
_TEMPLATES.filters["said"] = _said


def render(template: str, **values: object) -> Markup:
    """Fill a template of ``report/templates``; what is not Markup is escaped."""
    return Markup(_TEMPLATES.get_template(template).render(**values))


def page(title: str, body: str) -> str:
    """Put HTML into a page of its own.

    Parameters
    ----------
    title : str
        Plain text.
    body : str
        HTML.
    """
    return str(render("page.html", title=title, body=Markup(body)))


def contents(body: str) -> str:
    """List the second-level headings of a page as links."""
    headings = re.findall(r'<h2 id="([^"]+)">(.*?)(?:<a class="anchor-link".*?)?</h2>', body)
    return str(render("contents.html", headings=[(Markup(a), Markup(b)) for a, b in headings]))


def table(frame: pd.DataFrame) -> Markup:
    """Give a table that scrolls inside itself; texts are escaped, missing values are a dash."""
    return render("table.html", frame=frame, outcomes=OUTCOMES)


def image(png: bytes, caption: str, links: dict[str, str]) -> Markup:
    """Embed a figure that was drawn, with the alt text that it holds.

    Parameters
    ----------
    png : bytes
        Of a :class:`layercal.report.figures.registry.Drawing`.
    caption : str
        Plain text.
    links : dict of str
        Text -> where it leads, after the caption.
    """
    picture = PngImageFile(io.BytesIO(png))
    alt = picture.text["Description"]
    if picture.text.get("Comment") == NOTHING:
        return render("paragraphs.html", texts=[alt])
    data, inches = base64.b64encode(png).decode(), picture.width / picture.info["dpi"][0]
    shown = {"data": data, "alt": alt, "inches": inches}
    return render("figure.html", **shown, caption=caption, links=links)
