"""The one look of rendered pages: complete by themselves, so that they open without a network."""

from __future__ import annotations

import base64
import io
import re
from html import escape

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

STYLE = """
body { font: 16px/1.55 system-ui, sans-serif; color: #1c1c1c; background: #fff;
       max-width: 62rem; margin: 1.5rem auto; padding: 0 1rem; overflow-wrap: break-word }
h1 { line-height: 1.2 }
h2 { margin-top: 2.5rem; border-top: 1px solid #bbb; padding-top: 1rem }
a { color: #0b57a4 }
.anchor-link { display: none }
pre { white-space: pre-wrap }
nav ul { columns: 18rem; padding-left: 1.2rem; margin: 0 }
figure { margin: 1.2rem 0; break-inside: avoid }
figcaption { font-size: .88rem; color: #333 }
.scroll { overflow-x: auto; max-width: 100% }
.scroll img { display: block; width: 100%; min-width: 34rem; height: auto }
.scroll table { min-width: 36rem }
table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0;
        font-variant-numeric: tabular-nums }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top;
         border-bottom: 1px solid #ddd; min-width: 3rem; max-width: 26rem }
thead th { border-bottom: 2px solid #888 }
.confirmed, .lowered { color: #00563f; font-weight: 600 }
.refuted, .raised { color: #8a2c00; font-weight: 600 }
.undecided { color: #333; font-style: italic }
@media print {
  body { max-width: none; margin: 0; font-size: 11px }
  .scroll { overflow: visible }
  .scroll table { min-width: 0 }
  .scroll img { min-width: 0; width: auto; max-width: 100%; max-height: 22cm }
  table { font-size: 8px }
  th, td { padding-right: .4rem; min-width: 0 }
  nav, button::after { display: none }
}
"""


def page(title: str, body: str) -> str:
    """Put HTML into a page of its own.

    Parameters
    ----------
    title : str
        Plain text.
    body : str
        HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def contents(body: str) -> str:
    """List the second-level headings of a page as links."""
    found = re.findall(r'<h2 id="([^"]+)">(.*?)(?:<a class="anchor-link".*?)?</h2>', body)
    items = "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in found)
    return f'<nav aria-label="Contents"><ul>{items}</ul></nav>'


def table(frame: pd.DataFrame) -> str:
    """Give a table that scrolls inside itself; texts are escaped, missing values are a dash.

    Parameters
    ----------
    frame : DataFrame
    """
    html = frame.to_html(index=False, border=0, na_rep="–", float_format="{:.3f}".format)
    html = re.sub(r"<td>(confirmed|refuted|undecided|lowered|raised)</td>", _outcome, html)
    return f'<div class="scroll" tabindex="0" role="region" aria-label="Table">{html}</div>'


def _outcome(found: re.Match) -> str:
    return f'<td class="{found[1]}">{found[1]}</td>'


def image(figure: Figure, alt: str, caption: str = "") -> str:
    """Give a figure with its text for who cannot see it.

    Parameters
    ----------
    figure : Figure
    alt : str
        Plain text.
    caption : str
        HTML.
    """
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png")
    # 256 colours: a third of the size, and no difference to the eye
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "png")
    data = base64.b64encode(small.getvalue()).decode()
    width = f"max-width: {6.2 * figure.get_figwidth():.0f}rem"
    return (
        '<figure><div class="scroll" tabindex="0" role="region" aria-label="Figure">'
        f'<img src="data:image/png;base64,{data}" alt="{escape(alt)}" style="{width}"></div>'
        f"<figcaption>{caption}</figcaption></figure>"
    )
