"""What stands in the rendered reports of a finished study."""

import json

import pytest
from project import MARKUP

pytestmark = pytest.mark.workflow


def test_markup_is_shown_as_text(finished):
    """The small study's description, licence, subjects and questions are all markup."""
    for name in ("tiny-own.html", "index.html"):
        assert MARKUP not in (finished / f"reports/rendered/{name}").read_text()
    page = (finished / "reports/rendered/tiny-own.html").read_text()
    assert page.count("&lt;script&gt;alert(1)") >= 2


def test_the_report_says_how_it_was_made(finished):
    path = finished / "results/extract/tiny/own/residuals-0.provenance.json"
    made = json.loads(path.read_text())
    assert made["dtype"] == "torch.float32" and made["settings"]["shard"] == 0
    page = (finished / "reports/rendered/tiny-own.html").read_text()
    assert "How this was made" in page
    for text in ("dtype: torch.float32", "seed: 0", f"torch: {made['packages']['torch']}"):
        assert text in page
    assert "provenance" not in (finished / "dvc.lock").read_text()
