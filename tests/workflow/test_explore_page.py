"""The interactive page of a finished study, in headless Chromium without a network."""

import io
import re
import shutil

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from project import MARKUP, call

sync_api = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(not CHROMIUM, reason="needs chromium on the PATH"),
]
CHARTS = ["curves", "reliability", "histogram", "flow", "trajectory"]
SIZES = {"desk": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(params=SIZES)
def page(request, browser, finished):
    """The page once it is drawn; a test fails on any word in the console."""
    width, height = SIZES[request.param]
    context = browser.new_context(viewport={"width": width, "height": height}, offline=True)
    context.set_default_timeout(120_000)  # a busy machine is no fault of the page
    opened, said = context.new_page(), []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("dialog", lambda dialog: said.append(dialog.message))
    opened.goto((finished / "reports/rendered/embedded/explore.html").as_uri())
    opened.wait_for_selector("body[data-ready]")
    yield opened
    assert said == []
    context.close()


def slide(page, name, value):
    page.locator(f"#{name}").evaluate(
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input')); }",
        value,
    )


def drawn(page, chart):
    """SVG of a chart once it has settled."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 100)))")
    return page.locator(f"#{chart} svg").inner_html()


def measured(finished):
    table = pd.read_parquet(finished / "results/embedded/lens/tiny/own/metrics.parquet")
    table = table[(table["lens"] == "logit") & (table["group"] == "all")]
    return table[table["n_bins"].isin([0, 10])].set_index(["metric", "layer"])


def test_it_is_one_small_file_that_fetches_nothing(finished):
    page = finished / "reports/rendered/embedded/explore.html"
    text = page.read_text()
    assert page.stat().st_size < 5_000_000
    assert MARKUP not in text
    assert not re.search(r"<(link|img|iframe)\b|\bsrc=", text.split("</head>")[0])
    assert re.findall(r"<script[^>]* src=", text) == []
    assert 'href="explore.html"' in (page.parent / "index.html").read_text()


def test_charts_are_drawn_and_nothing_overflows(page):
    print(f"interactive after {page.get_attribute('body', 'data-ready')} ms")
    for chart in CHARTS:
        shot = page.locator(f"#{chart}").screenshot()
        pixels = matplotlib.image.imread(io.BytesIO(shot))[..., :3]
        colored = np.ptp(pixels, axis=-1) > 0.2
        assert colored.sum() > 200, f"{chart} is blank"
        assert page.locator(f"#{chart}").get_attribute("aria-label")
    widths = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    assert len(set(page.evaluate(widths))) == 1


def test_the_slider_moves_diagram_and_numbers(page, finished):
    table, seen = measured(finished), set()
    for layer in range(int(page.get_attribute("#layer", "max")) + 1):
        slide(page, "layer", layer)
        for metric in ("ece", "accuracy", "confidence"):
            row = table.loc[(metric, layer)]
            assert page.inner_text(f"#{metric}") == f"{row['value']:.3f}"
            interval = f"{row['ci_low']:.3f} to {row['ci_high']:.3f}"
            assert page.inner_text(f"#{metric}-interval") == interval
        assert page.inner_text("#ece-floor") == f"{table.loc[('ece', layer)]['null_high']:.3f}"
        assert f"ECE {table.loc[('ece', layer)]['value']:.3f}" in page.inner_text(
            "#reliability-text"
        )
        seen.add(drawn(page, "reliability"))
    assert len(seen) == layer + 1


def test_steered_readings_are_those_of_the_sweep(page, finished):
    sweep = pd.read_parquet(finished / "results/embedded/steering/tiny/own/sweep.parquet")
    labels = page.locator("#reading option").all_inner_texts()
    assert labels[1:] == [
        "steered, read at the steered layer",
        "steered, read at the last layer",
        "steered at all positions, read at the last layer",
    ]
    for label, mode in zip(labels[1:], sweep["mode"].unique(), strict=True):
        page.select_option("#reading", label=label)
        for direction in page.locator("#direction option").all_inner_texts():
            page.select_option("#direction", label=direction)
            of_mode = sweep[(sweep["mode"] == mode) & (sweep["direction"] == direction)]
            values = of_mode.set_index(["metric", "layer", "alpha"])["value"]
            for place, layer in enumerate(sweep["layer"].unique()):
                for index, alpha in enumerate(sweep["alpha"].unique()):
                    slide(page, "layer", place)
                    slide(page, "alpha", index)
                    assert page.inner_text("#ece") == f"{values['ece', layer, alpha]:.3f}"
                    if alpha == 0:
                        changed = page.locator("#moves td").all_inner_texts()
                        assert changed[1:4] == ["0", "0", "0"]
    assert direction == "matched control"


def test_search_finds_questions_and_shows_their_path(page):
    assert page.inner_text("#found") == "24 questions"
    page.fill("#search", "<SCRIPT>alert 22 25")
    assert page.inner_text("#found") == "1 question"
    assert page.inner_text("#text") == f"{MARKUP} 11 + 11?"
    assert page.locator("#choices .right").inner_text() == "D. 25 ✓ right answer"
    first = drawn(page, "trajectory")
    assert "the thick line is the right answer, D" in page.inner_text("#trajectory-text")
    page.fill("#search", "")
    page.locator("#questions button").nth(3).click()
    assert drawn(page, "trajectory") != first
    page.fill("#search", "nowhere to be found")
    assert page.inner_text("#found") == "0 questions"


def test_a_cell_of_the_flow_lists_its_questions(page, finished):
    options = pd.read_parquet(finished / "results/embedded/lens/tiny/own/options.parquet")
    logits = options[[f"logit_{letter}" for letter in "ABCD"]].to_numpy()
    chosen = logits.argmax(1).reshape(24, -1)
    counts = np.zeros((4, 4), int)
    np.add.at(counts, (chosen[:, -2], chosen[:, -1]), 1)
    shown = page.locator("#flow svg .mark-text.role-mark text").all_text_contents()
    assert sorted(map(int, shown)) == sorted(counts.ravel())
    moved = counts * (1 - np.eye(4, dtype=int))
    start, end = np.unravel_index(moved.argmax(), moved.shape)
    cell = page.locator("#flow svg .mark-rect path").nth(int(4 * start + end))
    cell.evaluate("cell => cell.scrollIntoView({ block: 'center' })")  # from under the sliders
    box = cell.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    assert page.inner_text("#found").split()[0] == str(moved.max())
    page.click("#clear")
    assert page.inner_text("#found") == "24 questions"


def test_a_missing_shard_ends_in_one_clear_error(finished, tmp_path):
    files = {
        "prompts": "extract/tiny/own/prompts.parquet",
        "options": "lens/tiny/own/options.parquet",
        "metrics": "lens/tiny/own/metrics.parquet",
        "phase": "lens/tiny/own/phase.json",
        "directions": "directions/tiny/own/directions.safetensors",
        "sweep": "steering/tiny/own/sweep.parquet",
        "logits": "steering/tiny/own/logits-0.safetensors",
    }
    given = [
        part for name, path in files.items() for part in (f"--{name}", f"results/embedded/{path}")
    ]
    given += ["--texts", "resources/questions/own.parquet", "--html", str(tmp_path / "page.html")]
    templates = "src/layercal/report/templates"
    given += ["--page", f"{templates}/explore.html", "--script", f"{templates}/explore.js"]
    stage = ["python", "-m", "layercal.stages", "render_explorer", "--pairs", "tiny/own"]
    done = call(finished, *stage, *given)
    assert done.returncode == 1
    shard = "results/embedded/steering/tiny/own/logits-0.safetensors"
    assert f"error: {shard}: together these shards do not hold each prompt" in done.said
    assert "Traceback" not in done.said
