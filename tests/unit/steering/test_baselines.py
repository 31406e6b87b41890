"""Recalibration against netcal, torch and closed forms."""

import numpy as np
import pytest
import torch
from netcal.scaling import TemperatureScaling
from scipy.special import log_softmax, softmax

from layercal.metrics import calibration
from layercal.steering import baselines


@pytest.fixture
def calibrated(rng):
    """Logits and answers drawn from them."""
    logits = 1.5 * rng.normal(size=(4000, 4))
    answer = (rng.random((4000, 1)) > softmax(logits, -1).cumsum(-1)).sum(-1).clip(0, 3)
    return logits, answer


@pytest.mark.parametrize("factor", [0.3, 1.0, 4.0])
def test_temperature_undoes_a_factor(calibrated, factor):
    logits, answer = calibrated
    back = baselines.temperature(factor * logits, answer)(factor * logits)
    assert np.median(back / logits) == pytest.approx(1, abs=0.07)
    best = baselines.nll(back, answer)
    for other in (0.9, 1.1):
        assert baselines.nll(other * back, answer) > best


def test_temperature_is_that_of_netcal(calibrated):
    logits, answer = 2 * calibrated[0], calibrated[1]
    theirs = TemperatureScaling().fit_transform(softmax(logits, -1), answer)
    ours = softmax(baselines.temperature(logits, answer)(logits), -1)
    np.testing.assert_allclose(ours, theirs, atol=5e-3)


def test_vector_scaling_is_the_best_of_its_form(calibrated):
    """Against torch's own optimiser on the same likelihood; and it undoes what it can undo."""
    logits, answer = calibrated
    bent = 2 * logits + np.array([1.0, 0, -1, 0.5])
    found = baselines.vector_scaling(bent, answer)(bent)
    factor, shift = torch.ones(4, requires_grad=True), torch.zeros(4, requires_grad=True)
    optimiser = torch.optim.LBFGS([factor, shift], max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimiser.zero_grad()
        scaled = torch.tensor(bent, dtype=torch.float32) * factor + shift
        loss = torch.nn.functional.cross_entropy(scaled, torch.tensor(answer))
        loss.backward()
        return loss

    optimiser.step(closure)
    assert baselines.nll(found, answer) == pytest.approx(closure().item(), abs=1e-5)
    np.testing.assert_allclose(softmax(found, -1), softmax(logits, -1), atol=0.06)
    assert baselines.nll(found, answer) < baselines.nll(bent, answer) - 0.1


def test_letter_prior_takes_a_shift_out(calibrated):
    logits, answer = calibrated
    shifted = logits + np.array([2.0, 0, 0, 0])
    found = softmax(baselines.letter_prior(shifted, answer)(shifted), -1)
    said = softmax(shifted, -1)
    expected = said / said.mean(0)
    np.testing.assert_allclose(found, expected / expected.sum(-1, keepdims=True), atol=1e-9)
    assert np.ptp(found.mean(0)) < 0.5 * np.ptp(said.mean(0))
    assert (found.argmax(-1) == answer).mean() > (said.argmax(-1) == answer).mean() + 0.05


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_options_that_are_not_there_stay_away(calibrated, name):
    logits, answer = calibrated[0].copy(), calibrated[1]
    lacking = np.arange(4000) % 2 == 0
    logits[lacking, 3] = -np.inf
    answer = np.where(lacking, answer % 3, answer)
    found = baselines.BASELINES[name](logits, answer)(logits)
    assert np.isneginf(found[lacking, 3]).all() and np.isfinite(found[~lacking]).all()
    logits[:, 3] = -np.inf
    three = baselines.BASELINES[name](logits[:, :3], answer % 3)(logits[:, :3])
    four = baselines.BASELINES[name](logits, answer % 3)(logits)
    np.testing.assert_allclose(log_softmax(four, -1)[:, :3], log_softmax(three, -1), atol=1e-3)


@pytest.mark.parametrize("name", baselines.BASELINES)
def test_a_fold_is_recalibrated_without_its_own_answers(calibrated, name):
    logits, answer = 2 * calibrated[0][:300], calibrated[1][:300]
    fold = np.arange(300) % 3
    found = baselines.cross_apply(baselines.BASELINES[name], logits, answer, fold)
    changed = np.where(fold == 1, (answer + 1) % 4, answer)
    again = baselines.cross_apply(baselines.BASELINES[name], logits, changed, fold)
    np.testing.assert_array_equal(found[fold == 1], again[fold == 1])
    for f in range(3):
        fitted = baselines.BASELINES[name](logits[fold != f], answer[fold != f])
        np.testing.assert_array_equal(found[fold == f], fitted(logits[fold == f]))


def test_temperature_brings_a_sharp_model_to_its_null_floor(calibrated):
    logits, answer = 3 * calibrated[0], calibrated[1]
    after = softmax(
        baselines.cross_apply(baselines.temperature, logits, answer, np.arange(4000) % 5), -1
    )
    before = softmax(logits, -1)
    errors = [calibration.ece(p.max(-1), p.argmax(-1) == answer) for p in (before, after)]
    assert errors[0] > 0.15 and errors[1] < 0.03
