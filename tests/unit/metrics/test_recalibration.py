"""Temperatures, and what they leave, where the truth is known."""

import numpy as np
import pytest
from netcal.scaling import TemperatureScaling
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from layercal.metrics import paired, readings, recalibration, resampling


def logits_of(rng, n, sharpness=1.0, k=4, spread=1.5):
    """Logits that are ``sharpness`` times those of a calibrated model, and the answers."""
    calibrated = rng.normal(size=(n, k)) * spread
    answer = (rng.random((n, 1)) > softmax(calibrated, -1).cumsum(-1)).sum(-1).clip(0, k - 1)
    return sharpness * calibrated, answer


def nll(logits, answer):
    return -log_softmax(logits, -1)[np.arange(len(answer)), answer].mean()


@pytest.mark.parametrize("sharpness", [0.05, 0.5, 1, 4, 30])
def test_the_temperature_is_the_best_of_all(rng, sharpness):
    logits, answer = logits_of(rng, 400, sharpness)
    logits[::7, 3] = -np.inf
    answer = np.minimum(answer, 2)
    found = recalibration.inverse_temperature(logits, answer)
    best = minimize_scalar(
        lambda log: nll(np.exp(log) * logits, answer),
        bounds=np.log(recalibration.TEMPERATURES),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert np.log(found) == pytest.approx(best.x, abs=1e-5)


def test_it_is_that_of_netcal(rng):
    logits, answer = logits_of(rng, 500, 3)
    scaling = TemperatureScaling()
    scaling.fit(softmax(logits, -1), answer)
    scaled = recalibration.inverse_temperature(logits, answer) * logits
    np.testing.assert_allclose(
        softmax(scaled, -1), scaling.transform(softmax(logits, -1)), atol=1e-3
    )


def test_layers_are_fitted_at_once(rng):
    many = np.stack([logits_of(rng, 100, s)[0] for s in (0.5, 2, 9)])
    answer = rng.integers(0, 4, 100)
    together = recalibration.inverse_temperature(many, answer)
    alone = [recalibration.inverse_temperature(one, answer) for one in many]
    np.testing.assert_allclose(together, alone, rtol=1e-8)


def test_readings_that_know_nothing_have_no_best_temperature(rng):
    logits = rng.normal(size=(100, 4))
    value, low, high = recalibration.temperature_interval(logits, logits.argmin(-1), np.arange(100))
    assert value == pytest.approx(recalibration.TEMPERATURES[1])
    assert low == 0 and np.isinf(high)


@pytest.mark.parametrize("size", [1, 4])
def test_the_interval_of_the_temperature_covers(size):
    """Of 2.5, over 400 sets of 280 questions; in clusters that share one answer, too."""
    rng, covered = np.random.default_rng(1), 0
    for _ in range(400):
        logits, answer = logits_of(rng, 280 // size, 2.5)
        logits, answer = np.repeat(logits, size, 0), np.repeat(answer, size)
        cluster = np.repeat(np.arange(280 // size), size)
        _, low, high = recalibration.temperature_interval(logits, answer, cluster)
        covered += low <= 2.5 <= high
    assert 0.92 <= covered / 400 <= 0.985  # binomial: .95 +- 3 * .011


def test_no_question_is_scaled_by_a_temperature_that_saw_it(rng):
    logits, answer = logits_of(rng, 90, 3)
    fold = np.arange(90) % 3
    scaled = recalibration.cross_tempered(logits[None], answer, fold)[0]
    for f in range(3):
        inside = fold == f
        factor = recalibration.inverse_temperature(logits[~inside], answer[~inside])
        np.testing.assert_allclose(scaled[inside], factor * logits[inside])
        other = answer.copy()
        other[inside] = rng.integers(0, 4, inside.sum())
        again = recalibration.cross_tempered(logits[None], other, fold)[0]
        np.testing.assert_array_equal(again[inside], scaled[inside])


def table_of(rng, sharpness, n=1200):
    """Layers that differ from the last, calibrated one by a factor, and the last one."""
    logits, answer = logits_of(rng, n)
    layers = np.stack([s * logits for s in (*sharpness, 1.0)])
    read = readings.Readings(layers, answer, {"option_mass": np.full((len(layers), n), 0.5)})
    fold = np.arange(n) % 5
    scaled = {"temperature": recalibration.cross_tempered(layers, answer, fold)}
    weights = resampling.resample_weights(n, 200, 0)
    found = recalibration.table(read, scaled, fold, weights, 10)
    return read, found.set_index(["layer", "recalibration", "metric"])


def test_what_differs_by_a_factor_is_scale(rng):
    read, found = table_of(rng, [4.0, 2.0])
    for layer, true in ((0, 4), (1, 2), (2, 1)):
        row = found.loc[layer, "temperature", "temperature"]
        assert row["ci_low"] < true < row["ci_high"]
        before = found.loc[layer, "none", "nll"]["value"]
        gain = found.loc[layer, "temperature", "nll_gain"]
        assert before == pytest.approx(paired.losses(read.logits[layer], read.answer)["nll"].mean())
        after = found.loc[layer, "temperature", "nll"]["value"]
        assert gain["value"] == pytest.approx(before - after)
    share = found.loc[0, "temperature", "scale_share"]
    assert share["value"] == pytest.approx(1, abs=0.02) and share["ci_low"] > 0.9
    assert found.loc[2, "temperature", "nll_gain"]["value"] == pytest.approx(0, abs=0.005)
    assert (2, "temperature", "scale_share") not in found.index


def test_what_is_lost_for_good_is_no_scale(rng):
    """A layer that knows nothing of half of the questions: no temperature brings that back."""
    logits, answer = logits_of(rng, 1200)
    early = np.where((np.arange(1200) % 2 == 0)[:, None], 0.0, logits)
    layers = np.stack([early, logits])
    read = readings.Readings(layers, answer, {"option_mass": np.ones((2, 1200))})
    fold = np.arange(1200) % 5
    scaled = {"temperature": recalibration.cross_tempered(layers, answer, fold)}
    weights = resampling.resample_weights(1200, 200, 0)
    found = recalibration.table(read, scaled, fold, weights, 10)
    share = found[(found["metric"] == "scale_share") & (found["layer"] == 0)].iloc[0]
    assert share["ci_low"] < 0.05 and share["ci_high"] < 0.2


def test_a_letter_bias_is_for_vector_scaling_not_for_a_temperature(rng):
    logits, answer = logits_of(rng, 1200)
    biased = logits + np.array([3.0, 0, 0, 0])
    fold = np.arange(1200) % 5
    scaled = recalibration.cross_tempered(biased[None], answer, fold)[0]
    assert nll(scaled, answer) > nll(logits, answer) + 0.1


def test_confidence_among_all_tokens(rng):
    read, found = table_of(rng, [2.0])
    gap = found.loc[0, "none", "vocabulary_signed_gap"]["value"]
    assert gap == pytest.approx((0.5 * read.confidence[0] - read.correct[0]).mean())
    assert found.loc[0, "none", "vocabulary_ece"]["value"] == pytest.approx(abs(gap), abs=0.05)


def test_maps_of_confidence_are_fitted_on_other_folds(rng):
    _, found = table_of(rng, [4.0])
    for name in recalibration.MAPS:
        gain = found.loc[0, name, "confidence_brier_gain"]
        assert gain["ci_low"] > 0
        assert found.loc[0, name, "ece"]["value"] < found.loc[0, "none", "ece"]["value"] / 2
        # the last layer is calibrated: what is fitted costs a little
        assert found.loc[1, name, "confidence_brier_gain"]["value"] < 0.002


def recalibrated(layers, answer, cluster=None, draws=50):
    """Table of readings of some layers."""
    n = len(answer)
    cluster = np.arange(n) if cluster is None else cluster
    read = readings.Readings(layers, answer, {"option_mass": np.ones(layers.shape[:2])}, cluster)
    fold = np.arange(n) % 5
    scaled = {"temperature": recalibration.cross_tempered(layers, answer, fold)}
    weights = resampling.resample_weights(n, draws, 0)
    made = recalibration.table(read, scaled, fold, weights, 10)
    return scaled["temperature"], made.set_index(["layer", "recalibration", "metric"])


def test_steps_add_up_to_what_nll_falls_by(rng):
    logits, answer = logits_of(rng, 600)
    layers = np.stack([3 * np.where(logits > 1, logits, 0), 2 * logits, logits])
    tempered, found = recalibrated(layers, answer)
    for layer in (1, 2):
        knowledge, scale = (
            found.loc[layer, "temperature", name] for name in ("knowledge_step", "scale_step")
        )
        fall = nll(layers[layer - 1], answer) - nll(layers[layer], answer)
        assert knowledge["value"] + scale["value"] == pytest.approx(fall)
        known = nll(tempered[layer - 1], answer) - nll(tempered[layer], answer)
        assert knowledge["value"] == pytest.approx(known)
    # the first layer was blind to half of it, the second only too sure
    assert found.loc[1, "temperature", "knowledge_step"]["ci_low"] > 0
    assert found.loc[2, "temperature", "scale_step"]["ci_low"] > 0
    assert found.loc[2, "temperature", "knowledge_step"]["value"] == pytest.approx(0, abs=0.01)
    assert (0, "temperature", "knowledge_step") not in found.index


def test_answers_that_are_permuted_are_known_by_no_layer():
    """Sharper and sharper layers, answers at random: over 60 sets, steps of all eight at once."""
    rng, shown = np.random.default_rng(3), 0
    for _ in range(60):
        layers = rng.normal(size=(8, 200, 4)) * np.linspace(0.5, 6, 8)[:, None, None]
        answer, fold = rng.integers(0, 4, 200), np.arange(200) % 5
        read = readings.Readings(layers, answer, {})
        tempered = recalibration.cross_tempered(layers, answer, fold)
        rows = recalibration.steps(read, tempered)
        shown += any(row["ci_low"] > 0 for row in rows if row["metric"] == recalibration.KNOWLEDGE)
    assert shown / 60 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_of_a_calibrated_model_nothing_is_scale():
    """Layers that are all calibrated: temperatures cover 1, and what is scale is left open."""
    rng, covers, undecided = np.random.default_rng(5), 0, 0
    for _ in range(60):
        logits, answer = logits_of(rng, 300)
        noisy = logits + 0.1 * rng.normal(size=logits.shape)
        layers = np.stack([noisy, logits])
        _, low, high = recalibration.temperature_interval(layers, answer, np.arange(300))
        covers += (low <= 1).all() and (high >= 1).all()
        tempered = recalibration.cross_tempered(layers, answer, np.arange(300) % 5)
        read = readings.Readings(layers, answer, {})
        undecided += not recalibration.scale_share(read, tempered, 0)[1] > 0
    assert covers / 60 >= 0.85 and undecided / 60 >= 0.9


def test_brier_with_another_confidence_against_a_loop(rng):
    logits = rng.normal(size=(30, 4))
    logits[::5, 3] = -np.inf
    answer, confidence = rng.integers(0, 3, 30), rng.random(30)
    found = recalibration.spread_brier(readings.Readings(logits, answer, {}), confidence)
    for row, right, said, value in zip(logits, answer, confidence, found, strict=True):
        p = np.exp(row) / np.exp(row).sum()
        top = p.argmax()
        moved = [said if k == top else (1 - said) * p[k] / (1 - p[top]) for k in range(4)]
        expected = sum((moved[k] - (k == right)) ** 2 for k in range(4))
        assert value == pytest.approx(expected, abs=1e-6)


def test_the_floor_is_what_a_calibrated_model_shows(rng):
    logits, answer = logits_of(rng, 400, 2.5)
    _, found = recalibrated(logits[None], answer, draws=400)
    row = found.loc[0, "none", "ece"]
    confidence = softmax(logits, -1).max(-1)
    drawn = [
        np.abs(
            np.bincount(
                np.minimum((confidence * 10).astype(int), 9),
                (rng.random(400) < confidence) - confidence,
                10,
            )
        ).sum()
        / 400
        for _ in range(2000)
    ]
    assert row["null_high"] == pytest.approx(np.quantile(drawn, 0.95), rel=0.12)
    assert row["value"] > row["null_high"] > 0
    assert np.isnan(found.loc[0, "none", "nll"]["null_high"])


def test_the_isotonic_map_is_that_of_pooling_by_hand(rng):
    """Neighbours that fall are pooled until none does (Ayer et al. 1955)."""
    confidence = np.sort(rng.random(80))
    correct = rng.random(80) < confidence
    pools = []
    for right in correct.astype(float):
        pools.append([right, 1])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            (low, m), (high, n) = pools[-2:]
            pools[-2:] = [[(low * m + high * n) / (m + n), m + n]]
    pooled = np.concatenate([np.full(count, mean) for mean, count in pools])
    np.testing.assert_allclose(recalibration.isotonic(confidence, correct)(confidence), pooled)


@pytest.mark.filterwarnings("error")
def test_where_all_options_are_alike_no_temperature_fits(rng):
    """Every one of them reads the same."""
    answer = rng.integers(0, 4, 40)
    _, low, high = recalibration.temperature_interval(np.ones((40, 4)), answer, np.arange(40))
    assert (low, high) == (0, np.inf)
