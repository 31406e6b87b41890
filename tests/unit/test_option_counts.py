"""Questions that differ in their number of options, against loops over each one's own options."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax
from sweeps import PRIMARY, tallied

from layercal import InputError, model
from layercal.metrics import calibration, readings, resampling
from layercal.model import lens
from layercal.prompts import rotation
from layercal.steering import evaluation
from layercal.steering.steered import Steered

COUNTS = np.array([4, 3, 5, 2, 4, 10] * 20)


@pytest.fixture
def mixed(rng):
    """Logits (120, 10), -inf beyond each question's own, and answers among these."""
    logits = rng.normal(size=(len(COUNTS), 10)) * 2
    logits[np.arange(10) >= COUNTS[:, None]] = -np.inf
    return logits, rng.integers(0, COUNTS)


def own(logits):
    """Each question's own probabilities, without the padding."""
    return [softmax(row[:count]) for row, count in zip(logits, COUNTS, strict=True)]


def test_metrics_are_those_of_the_own_options(mixed):
    logits, answer = mixed
    read = readings.Readings(logits[None], answer, {})
    table = readings.metric_table(read, [10], [1], 100, 0).set_index("metric")["value"]
    expected = {name: [] for name in ("accuracy", "confidence", "nll", "brier", "chance")}
    expected |= {f"predicted_{letter}": [] for letter in "ABCDEFGHIJ"}
    pairs = {letter: ([], []) for letter in range(10)}
    for p, right in zip(own(logits), answer, strict=True):
        best = int(np.argmax(p))
        expected["accuracy"].append(best == right)
        expected["confidence"].append(p[best])
        expected["nll"].append(-np.log(p[right]))
        expected["brier"].append(sum((q - (k == right)) ** 2 for k, q in enumerate(p)))
        expected["chance"].append(1 / len(p))
        for k, letter in enumerate("ABCDEFGHIJ"):
            expected[f"predicted_{letter}"].append(k == best)
        for k, q in enumerate(p):
            pairs[k][0].append(q)
            pairs[k][1].append(k == right)
    for metric, values in expected.items():
        assert table[metric] == pytest.approx(np.mean(values)), metric
    pair = expected["confidence"], expected["accuracy"]
    assert table["ece"] == pytest.approx(calibration.ece(*pair))
    # each letter's ECE over the questions that have it, weighted by how many these are
    by_letter = sum(len(q) * calibration.ece(q, hit) for q, hit in pairs.values()) / COUNTS.sum()
    assert table["classwise_ece"] == pytest.approx(by_letter)
    padded = softmax(logits, -1)
    assert calibration.classwise_ece(padded, answer, n_options=COUNTS) == pytest.approx(by_letter)
    assert calibration.brier(padded, answer) == pytest.approx(table["brier"])
    assert calibration.nll(padded, answer) == pytest.approx(table["nll"])


def test_answers_are_drawn_among_the_own_options(mixed, rng):
    probability = softmax(mixed[0], -1)
    uniform = rng.random((4000, len(COUNTS)), np.float32)
    uniform[0] = np.float32(1) - np.finfo(np.float32).epsneg  # what rounding leaves at the top
    correct, by_option = resampling.draw_outcomes(probability, uniform)
    drawn = np.stack(by_option, -1)
    assert (drawn.sum(-1) == 1).all()
    assert not drawn[:, np.arange(10) >= COUNTS[:, None]].any()
    np.testing.assert_allclose(drawn.mean(0), probability, atol=0.04)
    np.testing.assert_array_equal(correct, drawn[:, np.arange(len(COUNTS)), probability.argmax(-1)])


def test_lens_reads_the_own_options(tiny_model):
    read = model.LensModel(tiny_model)
    h = torch.randn(3, 2, read.width, generator=torch.Generator().manual_seed(0))
    ids, counts = torch.tensor([11, 23, 5, 90]), torch.tensor([4, 2, 3])
    found = lens.read(read, h, ids, counts[:, None], chunk=4)
    for question, count in enumerate(counts):
        for layer in range(2):
            z = read.unembed(h[question, layer])
            logits = found["logits"][question, layer]
            torch.testing.assert_close(logits[:count], z[ids[:count]])
            assert (logits[count:] == -torch.inf).all()
            mass = z.softmax(-1)[ids[:count]].sum()
            torch.testing.assert_close(found["option_mass"][question, layer], mass)


def test_steering_is_judged_on_the_own_options(mixed):
    logits, answer = mixed
    steered = np.stack([logits, logits / 2], 1)[:, None, None, None]
    fitted = np.repeat(steered, 3, 2)  # n, variants, folds, layers, alphas, options
    fold = np.arange(len(answer)) % 3
    made = evaluation.Sweep(
        steered={"lens": Steered(fitted, fitted, steered[:, 0], np.ones((len(answer), 3, 1, 2)))},
        controls=tallied(steered[:, 0], answer, fold, alphas=[0.0, 1.0]),
        answer=answer,
        fold=fold,
        cluster=np.arange(len(answer)),
        norms=np.ones(3),
        directions=[PRIMARY],
        layers=[2],
        alphas=[0.0, 1.0],
        accuracy_margin=0.02,
        n_bins=10,
        draws=100,
        seed=0,
    )
    confidence, correct = made.read(made.held_out("lens", PRIMARY))
    for scale, factor in ((0, 1), (1, 0.5)):
        p = [softmax(factor * row[:k]) for row, k in zip(logits, COUNTS, strict=True)]
        np.testing.assert_allclose(confidence[0, scale], [one.max() for one in p])
        hits = [one.argmax() == right for one, right in zip(p, answer, strict=True)]
        np.testing.assert_array_equal(correct[0, scale], hits)


def test_rotations_of_five_options(rng):
    """As many rotations as options; knowledge is kept by the average."""
    by_option, answer = rng.normal(size=(6, 5)), rng.integers(0, 5, 6)
    rows = [
        {
            "question_id": q,
            "permutation": r,
            "layer": 0,
            "answer": (answer[q] - r) % 5,
            "option_mass": 1,
            "entropy": 1,
        }
        | dict(zip([f"logit_{c}" for c in "ABCDE"], np.roll(by_option[q], -r), strict=True))
        for q in range(6)
        for r in range(5)
    ]
    found = readings.from_options(pd.DataFrame(rows))
    assert list(found) == ["averaged", *(f"rotation-{r}" for r in range(5))]
    np.testing.assert_allclose(found["averaged"].confidence[0], softmax(by_option, -1).max(-1))
    np.testing.assert_allclose(found["averaged"].chance, 0.2)
    question = {"choices": list("vwxyz"), "answer": 0}
    assert rotation.rotations([question, question]) == 5
    with pytest.raises(InputError, match="same number of options, found 4, 5; use option_order"):
        rotation.rotations([question, {"choices": list("wxyz")}])
