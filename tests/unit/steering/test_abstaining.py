"""Selective prediction before and after steering whose effect is known."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sweeps import sweep

from layercal.metrics import selective
from layercal.steering import abstaining


@pytest.fixture
def made(rng):
    # at the scale 1 logits are divided by their excess: the right temperature
    return sweep(rng, [1.0, 1.0, 0.6, 1 / 3])


def test_a_scale_lowers_the_scores_and_leaves_the_curve(made):
    tables = {name: pd.DataFrame(rows) for name, rows in abstaining.summarise(made).items()}
    rows = tables["selective"].set_index(["steered", "metric"])["value"]
    assert rows[True, "nll"] < rows[False, "nll"] - 0.1
    assert rows[True, "ece"] < rows[False, "ece"] / 2
    assert rows[True, "nll_change"] == pytest.approx(rows[True, "nll"] - rows[False, "nll"])
    assert rows[True, "accuracy"] == rows[False, "accuracy"]
    # of logits that are all scaled alike the order of confidence hardly moves
    assert rows[True, "excess_aurc"] == pytest.approx(rows[False, "excess_aurc"], abs=0.01)


def test_the_curve_is_that_of_the_readings(made):
    logits = made.unsteered("through-network", 0)
    confidence, correct = softmax(logits, -1).max(-1), logits.argmax(-1) == made.answer
    curves = pd.DataFrame(abstaining.summarise(made)["risk_coverage"])
    before = curves[~curves["steered"]]
    order = np.argsort(-confidence, kind="stable")
    for row in before.itertuples():
        top = order[: round(row.coverage * len(order))]
        assert row.risk == pytest.approx(1 - correct[top].mean(), abs=1e-6)
    assert before["coverage"].iloc[-1] == 1


def test_helm_stands_beside(made):
    rows = pd.DataFrame(abstaining.summarise(made)["selective"])
    logits = made.unsteered("through-network", 0)
    pair = softmax(logits.astype(float), -1).max(-1), logits.argmax(-1) == made.answer
    values = rows[~rows["steered"]].set_index("metric")["value"]
    for name, value in selective.helm(*pair).items():
        assert values[name] == pytest.approx(value)
