"""The figures of a report: each is one function that says all there is of it, and is drawn once."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from layercal.report import NOTHING, style
from layercal.results import Results


@dataclass
class Drawing:
    """A figure, the rows that it shows, and what it shows in words (its alt text)."""

    figure: Figure
    data: pd.DataFrame
    alt: str

    def pdf(self) -> bytes:
        """The figure without a date, so that an unchanged figure is an unchanged file."""
        page = io.BytesIO()
        self.figure.savefig(page, format="pdf", metadata={"CreationDate": None})
        return page.getvalue()

    def png(self) -> bytes:
        """The figure with its alt text, which pages that embed it read, in the file itself."""
        drawn, small, text = io.BytesIO(), io.BytesIO(), PngInfo()
        self.figure.savefig(drawn, format="png")
        text.add_itxt("Description", self.alt)
        if NOTHING in self.data:
            text.add_itxt("Comment", NOTHING)
        # 256 colours: a third of the size, and no difference to the eye
        image = Image.open(drawn)
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(small, "png", pnginfo=text, dpi=image.info["dpi"])
        return small.getvalue()


@dataclass(frozen=True)
class Entry:
    """How a figure is made of results, the section of the report it is of, and its caption."""

    make: Callable[[Results], Drawing | str]
    section: str
    caption: str


REGISTRY: dict[str, Entry] = {}


def figure(section: str, caption: str) -> Callable:
    """Enter a function into the registry, under its name with dashes.

    Parameters
    ----------
    section : str
        Of the report, which shows its figures in the order in which they are entered.
    caption : str
    """

    def enter(make: Callable[[Results], Drawing | str]) -> Callable[[Results], Drawing | str]:
        REGISTRY[make.__name__.replace("_", "-")] = Entry(make, section, caption)
        return make

    return enter


def draw(name: str, results: Results) -> Drawing:
    """Draw one figure of a report; one that says why, where there is nothing to show.

    Parameters
    ----------
    name : str
        Of the registry.
    results : Results
    """
    drawing = REGISTRY[name].make(results)
    if isinstance(drawing, str):
        return Drawing(plot_nothing(drawing), pd.DataFrame({NOTHING: [drawing]}), drawing)
    return drawing


def plot_nothing(reason: str) -> Figure:
    """A figure that says why there is nothing to show."""
    style.theme()
    figure = Figure(figsize=(8.5, 1))
    figure.text(0.02, 0.5, reason, va="center")
    return figure
