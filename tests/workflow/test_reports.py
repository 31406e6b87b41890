"""What stands in the rendered reports of a finished study, read in a real browser without a net."""

import io
import json
import re
import shutil
import zipfile

import matplotlib.image
import nbformat
import pandas as pd
import pytest
from playwright.sync_api import sync_playwright
from project import MARKUP, snakemake

from layercal.report.figures import REGISTRY

pytestmark = pytest.mark.workflow
PAGES = ["index.html", "atlas.html", "tiny/own.html"]


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium")
    if not path:
        pytest.skip("the browser needs Debian's package chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def visit(browser, finished):
    """Open a page from disk, offline; whatever it complains of fails the test."""
    context, faults = browser.new_context(offline=True), []
    page = context.new_page()
    page.on("console", lambda said: faults.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.on("dialog", lambda dialog: (faults.append("a script ran"), dialog.dismiss()))

    def go(name, width=1280):
        page.set_viewport_size({"width": width, "height": 800})
        page.goto((finished / "reports/rendered/embedded" / name).as_uri())
        return page

    yield go
    context.close()
    assert not faults


@pytest.mark.parametrize("name", PAGES)
def test_figures_are_there_and_described(visit, name):
    images = visit(name).locator("img").all()
    assert images
    for image in images:
        assert len(image.get_attribute("alt")) > 20
        pixels = matplotlib.image.imread(io.BytesIO(image.screenshot()))[..., :3]
        assert 0.002 < (pixels < 0.9).any(-1).mean() < 0.9, image.get_attribute("alt")


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [1280, 640, 390])
def test_pages_fit_their_window(visit, name, width):
    """Tables and figures scroll inside; the page itself never sideways."""
    page = visit(name, width)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for table in page.locator("table").all():
        box = table.locator("xpath=..").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere_and_pages_are_small(visit, finished, name):
    path = finished / "reports/rendered/embedded" / name
    assert path.stat().st_size < 5e6
    page = visit(name)
    for link in page.locator("a").all():
        place, _, anchor = link.get_attribute("href").partition("#")
        assert not place or (path.parent / place).exists(), place
        named = "name => !!document.getElementById(decodeURIComponent(name))"
        assert place or page.evaluate(named, anchor), anchor


def test_the_table_of_the_atlas_sorts(visit):
    page = visit("atlas.html")
    head = page.locator("th", has=page.get_by_role("button", name="ECE at peak"))
    column = head.evaluate("cell => cell.cellIndex")

    def values():
        cells = page.locator(f"table.sortable tbody td:nth-child({column + 1})").all()
        return [float(cell.get_attribute("data-value")) for cell in cells]

    for direction, reverse in (("ascending", False), ("descending", True)):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == direction
        assert values() == sorted(values(), reverse=reverse) and len(values()) == 2
    # what is missing stays last, whichever way
    for _ in range(2):
        page.get_by_role("button", name="chance").click()
        assert "not measured here" in page.locator("table.sortable tbody tr").last.inner_text()


def test_markup_is_shown_as_text(visit, finished):
    """The small study's description, licence, subjects and questions are all markup."""
    for name in PAGES:
        assert MARKUP not in (finished / "reports/rendered/embedded" / name).read_text()
    assert visit("tiny/own.html").inner_text("body").count(MARKUP) >= 2


def test_the_report_says_how_it_was_made(finished):
    path = finished / "results/embedded/extract/tiny/own/residuals-0.provenance.json"
    made = json.loads(path.read_text())
    assert made["dtype"] == "torch.float32" and made["settings"]["shard"] == 0
    page = (finished / "reports/rendered/embedded/tiny/own.html").read_text()
    assert "How this was made" in page
    for text in ("dtype: torch.float32", "seed: 0", f"torch: {made['packages']['torch']}"):
        assert text in page
    assert "provenance" not in (finished / "dvc.lock").read_text()


def test_claims_have_numbers(visit, finished):
    path = finished / "results/embedded/steering/tiny/own/summary.json"
    claims = json.loads(path.read_text())["claims"]
    said = visit("tiny/own.html").inner_text("body")
    for claim in claims:
        assert claim["claim"] in said and claim["measure"] in said
        assert claim["n"] == 24 and claim["outcome"] in said
        assert claim["outcome"] == "not applicable" or claim["evidence"] in said
    latex = (finished / "reports/rendered/embedded/tiny/figures/own/claims.tex").read_text()
    assert latex.count(r"\\") == len(claims) + 1 and r"\toprule" in latex


def test_figures_in_notebooks_are_described(finished):
    notebook = nbformat.read(finished / "reports/rendered/embedded/tiny/own.ipynb", 4)
    shown = "".join(
        str(out.get("data", "")) for c in notebook.cells for out in c.get("outputs", [])
    )
    images = re.findall(r"<img [^>]*>", shown)
    assert len(images) > 10 and all(re.search(r'alt="[^"]{20,}', one) for one in images)


def test_every_figure_is_kept_for_papers(finished):
    folder = finished / "reports/rendered/embedded/tiny/figures/own"
    for name in REGISTRY:
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert (folder / f"{name}.pdf").read_bytes().startswith(b"%PDF")
        assert len(pd.read_csv(folder / f"{name}.csv"))
    metrics = pd.read_parquet(finished / "results/embedded/lens/tiny/own/metrics.parquet")
    rows = metrics.query("metric == 'ece' and n_bins == 10 and group == 'all' and lens == 'logit'")
    kept = pd.read_csv(folder / "layer-curves.csv").query("metric == 'ece'")
    assert kept["value"].tolist() == pytest.approx(rows["value"].tolist())


def links(page):
    """What a page leads to and shows, apart from places on the page itself."""
    text = re.sub(r"<script\b.*?</script>", "", page.read_text(), flags=re.S)
    found = re.findall(r'<(?:a|img)\b[^>]*? (?:href|src)="([^"]+)"', text)
    return {one.partition("#")[0] for one in found if not one.startswith(("#", "data:"))}


def test_snakemakes_own_report(study, tmp_path):
    """Pages in the bundle lie to each other as they do in the study, so that links work."""
    for arguments in (("bundle",), ("bundle", "--report", "report.zip"), ("--report", "one.html")):
        done = snakemake(study, *arguments)
        assert done.returncode == 0, done.said
    with zipfile.ZipFile(study / "report.zip") as bundle:
        bundle.extractall(tmp_path)
    entry = tmp_path / "report/report.html"
    (index,) = tmp_path.glob("report/data/raw/*/index.html")
    assert str(index.relative_to(entry.parent)) in entry.read_text()
    for text in ("Pages", "Overview", "Layer curves", "leads to the atlas"):
        assert text in entry.read_text()
    pages = {one.relative_to(index.parent) for one in index.parent.rglob("*.html")}
    assert set(map(str, pages)) == {*PAGES, "explore.html"}
    reached = set()
    for page in (index.parent / one for one in pages):
        for link in links(page):
            assert (page.parent / link).is_file(), f"{page.name}: {link}"
            reached.add((page.parent / link).resolve())
    assert {page.resolve() for page in index.parent.rglob("*.html")} <= reached
    assert (index.parent / "tiny/figures/own/layer-curves.pdf").resolve() in reached
    # what the report holds beside the folder of pages has no links that could die
    others = [one for one in tmp_path.glob("report/data/raw/*/*") if one.parent != index.parent]
    assert {one.name for one in others} == {"own.png", "workflow.png"}
