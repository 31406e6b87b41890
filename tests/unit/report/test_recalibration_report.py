"""What figures, tables and sentences say of the correction is what the tables hold."""

import io
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sweeps import sweep
from threadpoolctl import threadpool_limits

from layercal.ablation import norm
from layercal.metrics import accuracy, halves, phase, readings, recalibration, resampling, rivals
from layercal.metrics.scoring import Scoring
from layercal.report import figures, tables, words
from layercal.steering import abstaining, baselines

DRAWN = "refinement", "temperatures", "halves", "norm", "normalisations", "risk-coverage"


@pytest.fixture(scope="module")
def results():
    """Layers that know nothing, then know and are four, two and one times too sure."""
    rng = np.random.default_rng(0)
    n, fold = 400, np.arange(400) % 5
    last = rng.normal(size=(n, 4)) * 1.5
    answer = (rng.random((n, 1)) > softmax(last, -1).cumsum(-1)).sum(-1).clip(0, 3)
    logits = np.stack([rng.normal(size=(n, 4)) * 3, *(s * last for s in (4, 3, 2, 1))])
    read = readings.Readings(logits, answer, {"option_mass": np.full((5, n), 0.5)})
    weights = resampling.resample_weights(n, 100, 0)
    scaled = recalibration.cross_tempered(logits, answer, fold)
    with threadpool_limits(1):
        vector = [baselines.cross_apply(baselines.vector_scaling, z, answer, fold) for z in logits]
    held_out = {"temperature": scaled, "vector scaling": np.stack(vector)}
    known = accuracy.above_chance(last.argmax(-1), answer)
    confidence = softmax(scaled, -1).max(-1)
    # of each block's step all is attention's; the stream grows as the layers cool
    middles = readings.Readings(logits[1:], answer, {})
    scales = [1, 1, 4 / 3, 2, 4]
    patched = ((a, b, logits[a] * scales[a] / scales[b]) for a in range(5) for b in range(a, 5))
    return SimpleNamespace(
        phase=phase.detect(read.confidence, read.correct, weights, known).to_json(),
        recalibrated_phase=phase.detect(confidence, read.correct, weights, known).to_json(),
        recalibration=recalibration.table(read, held_out, fold, weights, 10),
        steps=halves.table(halves.with_middles(read, middles), fold, 1),
        norm=norm.table(Scoring(answer=answer, cluster=np.arange(n)), patched),
        rivals=rivals.table(read, rng.normal(size=(5, n, 4)), fold, weights, 10),
        **{
            name: pd.DataFrame(rows)
            for name, rows in abstaining.summarise(sweep(rng, [1.0, 1.0, 0.6, 0.3])).items()
        },
    )


@pytest.mark.parametrize("name", DRAWN)
def test_figures_are_labelled_and_not_blank(name, results):
    drawing = figures.draw(name, results)
    assert all(axes.has_data() and axes.get_ylabel() for axes in drawing.figure.axes)
    assert any(axes.get_xlabel() for axes in drawing.figure.axes)
    assert len(drawing.data) and len(drawing.alt) > 40
    pixels = matplotlib.image.imread(io.BytesIO(drawing.png()))[..., :3]
    assert 0.005 < (pixels < 0.9).any(-1).mean() < 0.6
    first, second = (figures.draw(name, results).pdf() for _ in range(2))
    assert first == second


def test_temperatures_are_those_of_the_table(results):
    top, bottom = figures.draw("temperatures", results).figure.axes
    fitted = words.recalibrated(results, "temperature", "temperature")["value"]
    line = next(each for each in top.get_lines() if each.get_label() == "temperature")
    np.testing.assert_allclose(line.get_ydata()[1:], fitted[1:])
    after = words.recalibrated(results, "temperature", "ece")["value"]
    line = next(each for each in bottom.get_lines() if each.get_label() == "after a temperature")
    np.testing.assert_allclose(line.get_ydata(), after)


def test_where_no_temperature_fits_the_figure_says_so(results):
    rows = results.recalibration.assign(ci_high=np.inf)
    other = SimpleNamespace(**{**vars(results), "recalibration": rows})
    top = figures.draw("temperatures", other).figure.axes[0]
    labels = [text.get_text() for text in top.get_legend().get_texts()]
    assert "no temperature fits:\nat the end of those tried" in labels
    assert "Layer 1, the peak of ECE, has no temperature that fits" in words.correction(other)


def test_in_words_the_correction_is_scale(results):
    assert results.phase["outcome"] == "exists" and results.phase["peak_layer"] == 1
    said = words.correction(results)
    value = words.recalibrated(results, "temperature", "temperature").loc[1, "value"]
    assert value == pytest.approx(4, rel=0.2) and f"fits at T = {value:.2f}" in said
    assert "is scale, which temperatures take away" in said
    assert (
        "their temperatures): 1; above the peak, layers shown to better the scale: 2, 3, 4" in said
    )
    assert "no phase is shown any more" in said


def test_in_words_attention_and_the_norm_do_it(results):
    said = words.mechanism(results)
    scale = results.steps.query("first_block < last_block and metric == 'scale_step'")
    by_attention = scale["value"].iloc[0]
    assert f"In blocks 2 to 4 NLL falls (95 % CI) by scale {by_attention:.3f} (" in said
    assert "and 0.000 (0.000 to 0.000) by MLP" in said
    assert "Layer 1 read with the norm's scale of layer 4 loses 100% (95 % CI 100% to 100%)" in said
    ece = results.norm.set_index(["layer", "norm_layer"])["ece"]
    assert (
        f"its ECE goes from {ece[1, 1]:.3f} to {ece[1, 4]:.3f} (layer 4: {ece[4, 4]:.3f})" in said
    )
    lacking = SimpleNamespace(**{**vars(results), "steps": halves.NOTHING})
    assert "no stream between attention and MLP" in words.mechanism(lacking)
    assert "no stream between" in figures.draw("halves", lacking).alt
    chance = SimpleNamespace(phase={"outcome": "at chance"})
    assert words.mechanism(chance) == ""


def test_where_there_was_no_phase_none_is_taken_away(results):
    other = SimpleNamespace(**{**vars(results), "phase": {**results.phase, "outcome": "at chance"}})
    assert "no correction to take apart" in words.correction(other)
    assert (
        words.phase_left(other) == "No phase was shown as it is (at chance), so none is taken away."
    )


def test_tables_of_recalibration(results):
    shown = tables.temperatures(results).set_index("layer")
    assert shown.loc[4, "scale share [95 % CI]"] == "–" == shown.loc[0, "T [95 % CI]"]
    rows = results.recalibration.query("metric == 'nll' and recalibration == 'none'")
    np.testing.assert_allclose(shown["NLL"], rows["value"])
    both = tables.phases(results)
    assert both["outcome"].tolist()[0] == "exists" != both["outcome"].tolist()[1]
    named = tables.normalisations(results)
    assert named["layer"].tolist() == [1, 4]
    gap = (results.recalibration.query("metric == 'vocabulary_signed_gap' and layer == 4"))["value"]
    assert named["gap, among all tokens"].iloc[1].startswith(f"{gap.iloc[0]:.3f} [")


def test_directions_stand_beside_their_rivals(results):
    shown = tables.rivals(results).set_index("reading")
    assert {rivals.LAST, rivals.PROBE, *rivals.RIVALS} < set(shown.index)
    (steered,) = [name for name in shown.index if name.endswith("steered")]
    rows = results.selective.query("steered and metric == 'nll'")
    assert shown.loc[steered, "NLL"] == rows["value"].iloc[0]
    helm = tables.helm(results)
    assert helm.columns.tolist() == ["reading", *tables.HELM] and helm.notna().all(axis=None)
    assert tables.selective(results).notna().all(axis=None)


def test_the_protocol_is_what_the_files_say(tmp_path):
    (tmp_path / "residuals-0.provenance.json").write_text('{"dtype": "torch.bfloat16"}')
    prompts = pd.DataFrame(
        {
            "option_ids": [np.array([5, 6]), np.array([5, 6, 7])],
            "n_shots": [0, 0],
            "permutation": [0, 0],
            "model_sha256": "abc",
        }
    )
    metrics = {"metric": "ece", "layer": [0, 1], "value": 0.1, "null_high": 0.05, "n": 2}
    metrics |= {"n_bins": 4, "group": "all", "lens": "logit", "order": "as-is", "primary": True}
    results = SimpleNamespace(
        prompts=prompts,
        metrics=pd.DataFrame(metrics),
        options=pd.DataFrame({"layer": [0, 1, 0, 1], "option_mass": [0, 0.25, 0, 0.75]}),
        phase={"final_layer": 1, "order": "as-is"},
        run=SimpleNamespace(fingerprint="f00"),
        path=lambda name: tmp_path / "prompts.parquet",
    )
    card = tables.protocol(results).set_index("what")["value"]
    assert card["edges, the upper one inside"] == "0, 0.25, 0.5, 0.75, 1"
    assert card["letter tokens (ids)"] == "5, 6; 5, 6, 7" and card["shots"] == "0"
    assert card["mass of the options among all tokens, last layer"] == "0.500"
    assert card["prompts (sha256)"] == "f00" and card["dtype"] == "torch.bfloat16"
    (tmp_path / "residuals-0.provenance.json").unlink()
    card = tables.protocol(results).set_index("what")["value"]
    assert card["dtype"] == "not recorded in this working copy"
