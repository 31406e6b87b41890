"""Render the entry page: every report of the study with its headline numbers."""

from __future__ import annotations

import json
from pathlib import Path

import jinja2

from layercal import files
from layercal.report import pages
from layercal.stages import Output

BODY = """<h1>Calibration over layers</h1>
<p>Each model is read layer by layer through its own final norm and unembedding. A confidence
correction phase exists when the model answers above chance and its calibration error falls after
accuracy has settled, both beyond their 95 % intervals.</p>
<p><a href="atlas.html">Atlas</a>: all models side by side.
<a href="explore.html">Explore the layers</a>: slide over them, and follow each question.</p>
{% for model, questions, found in reports %}
{% set page = model ~ "/" ~ questions %}
{% set name = model ~ " on " ~ questions %}
<section>
<h2><a href="{{ page }}.html">{{ name }}</a></h2>
<p>{{ found.reason }}</p>
<table>
<tr><th>Correction phase</th><td>{{ "exists" if found.exists else "not claimed" }}</td></tr>
<tr><th>Accuracy at the final layer</th><td>{{ "%.3f" | format(found.accuracy_final) }}</td></tr>
<tr><th>ECE at its peak (layer {{ found.peak_layer }})</th>
    <td>{{ "%.3f" | format(found.ece_peak) }}</td></tr>
<tr><th>ECE at the final layer ({{ found.final_layer }})</th>
    <td>{{ "%.3f" | format(found.ece_final) }}</td></tr>
</table>
<p class="scroll"><a href="{{ page }}.html"><img src="{{ page }}.png"
  alt="Accuracy, confidence and ECE of {{ name }} over its layers"></a></p>
<p><a href="{{ page }}.html">Report</a> · <a href="{{ page }}.ipynb">notebook</a> ·
<a href="{{ model }}/figures/{{ questions }}/layer-curves.pdf">figure as PDF</a> ·
<a href="{{ model }}/figures/{{ questions }}/claims.tex">claims as LaTeX</a></p>
</section>
{% endfor %}
<section>
<h2>How the pages are made</h2>
<p class="scroll"><a href="workflow.pdf"><img src="workflow.png"
  alt="Rules of the workflow, from fetching models and questions to this page"></a></p>
</section>
"""


def render_index(
    *,
    pairs: list[str],
    phases: list[Path],
    html: Output,
) -> None:
    """Write the page; names and texts are escaped."""
    reports = [
        (*pair.split("/"), json.loads(path.read_text()))
        for pair, path in zip(pairs, phases, strict=True)
    ]
    template = jinja2.Environment(autoescape=True).from_string(BODY)
    page = pages.page("Calibration over layers", template.render(reports=reports))
    files.write_atomically(html, page)
