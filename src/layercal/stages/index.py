"""Render the entry page: every report of the study with its headline numbers."""

import json
from pathlib import Path

import jinja2

from layercal import sources, stages

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Calibration over layers</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; max-width: 60rem; margin: 2rem auto;
       padding: 0 1rem }
section { border-top: 1px solid #ccc; padding: 1rem 0 }
h2 { margin: 0 0 .3rem }
p:has(img) { overflow-x: auto }
img { width: 100%; min-width: 32rem; max-width: 44rem; height: auto }
table { border-collapse: collapse }
td, th { padding: .15rem 1rem .15rem 0; text-align: left; font-weight: normal }
td { font-variant-numeric: tabular-nums }
</style>
</head>
<body>
<h1>Calibration over layers</h1>
<p>Each model is read layer by layer through its own final norm and unembedding. A confidence
correction phase exists when the model answers above chance and its calibration error falls after
accuracy has settled, both beyond their 95 % intervals.</p>
<p><a href="atlas.html">Atlas</a>: all models side by side.
<a href="explore.html">Explore the layers</a>: slide over them, and follow each question.</p>
{% for name, found in reports %}
<section>
<h2><a href="{{ name }}.html">{{ name }}</a></h2>
<p>{{ found.reason }}</p>
<table>
<tr><th>Correction phase</th><td>{{ "exists" if found.exists else "not claimed" }}</td></tr>
<tr><th>Accuracy at the final layer</th><td>{{ "%.3f" | format(found.accuracy_final) }}</td></tr>
<tr><th>ECE at its peak (layer {{ found.peak_layer }})</th>
    <td>{{ "%.3f" | format(found.ece_peak) }}</td></tr>
<tr><th>ECE at the final layer ({{ found.final_layer }})</th>
    <td>{{ "%.3f" | format(found.ece_final) }}</td></tr>
</table>
<p><a href="{{ name }}.html"><img src="{{ name }}.png"
  alt="Accuracy, confidence and ECE of {{ name }} over its layers"></a></p>
<p><a href="{{ name }}.html">Report</a> · <a href="{{ name }}.ipynb">notebook</a> ·
<a href="{{ name }}/figures/layer-curves.pdf">figure as PDF</a> ·
<a href="{{ name }}/figures/claims.tex">claims as LaTeX</a></p>
</section>
{% endfor %}
<section>
<h2>How the pages are made</h2>
<p><a href="workflow.pdf"><img src="workflow.png"
  alt="Rules of the workflow, from fetching models and questions to this page"></a></p>
</section>
</body>
</html>
"""


def main() -> None:
    """Run the stage."""
    made = stages.parser("index", __doc__)
    made.add_argument("--reports", type=Path, nargs="+", required=True, help="rendered reports")
    made.add_argument("--phases", type=Path, nargs="+", required=True, help="phase.json of each")
    made.add_argument("--out", type=Path, required=True)
    stages.run(stage, made)


def stage(args) -> None:
    """Write the page; names and texts are escaped."""
    reports = [
        (report.stem, json.loads(path.read_text()))
        for report, path in zip(args.reports, args.phases, strict=True)
    ]
    template = jinja2.Environment(autoescape=True).from_string(PAGE)
    sources.write_atomically(args.out, template.render(reports=reports))


if __name__ == "__main__":
    main()
