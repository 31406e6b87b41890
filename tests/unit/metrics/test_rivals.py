"""What could be done instead of steering, against scikit-learn, netcal and plain loops."""

import numpy as np
import pytest
from netcal.metrics import ECE
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import brier_score_loss, log_loss, roc_auc_score
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from layercal.metrics import readings, resampling, rivals


@pytest.fixture
def layers(rng):
    """Log-probabilities of four layers that know ever more, and the answers."""
    answer = rng.integers(0, 4, 400)
    signal = np.eye(4)[answer]
    known = np.array([0.0, 0.6, 1.4, 1.3])[:, None, None]
    return log_softmax(known * signal + rng.normal(size=(4, 400, 4)), -1), answer


def nll(log_p, answer):
    return -np.mean([row[right] for row, right in zip(log_p, answer, strict=True)])


def test_layers_are_chosen_as_by_trying_each(layers):
    log_p, answer = layers
    best = min(range(4), key=lambda layer: nll(log_p[layer], answer))
    np.testing.assert_array_equal(rivals.best_layer(log_p, answer)(log_p), log_p[best])
    means = [np.log(np.exp(log_p[-count:]).mean(0)) for count in (1, 2, 3, 4)]
    best = min(means, key=lambda mean: nll(mean, answer))
    np.testing.assert_allclose(rivals.mean_of_last(log_p, answer)(log_p), best)


def test_weights_of_layers_are_the_most_likely(layers):
    log_p, answer = layers

    def mixed(free):
        return np.log(np.einsum("l,lnk->nk", softmax(free), np.exp(log_p)))

    best = minimize(lambda free: nll(mixed(free), answer), np.zeros(4), method="Nelder-Mead")
    fitted = rivals.weighted_layers(log_p, answer)(log_p)
    assert nll(fitted, answer) == pytest.approx(best.fun, abs=2e-4)
    np.testing.assert_allclose(np.exp(fitted).sum(-1), 1)


@pytest.mark.parametrize("name", rivals.RIVALS)
def test_no_question_is_read_by_what_saw_it(name, layers, rng):
    log_p, answer = layers
    fold = np.arange(400) % 5
    read = rivals.cross_read(rivals.RIVALS[name], log_p, answer, fold)
    other = np.where(fold == 2, rng.permutation(answer), answer)
    again = rivals.cross_read(rivals.RIVALS[name], log_p, other, fold)
    np.testing.assert_array_equal(read[fold == 2], again[fold == 2])


@pytest.fixture
def stream(rng):
    """Two layers of a stream; the second tells right answers from wrong ones."""
    correct = rng.random(300) < 0.6
    noise = rng.normal(size=(2, 300, 12)) * np.linspace(1, 30, 12)
    noise[1, :, 3] += 15 * correct
    return noise, correct


def test_a_probe_is_that_of_a_grid_search(stream):
    """scikit-learn's own search over penalties, on the folds that are left."""
    read, correct = stream
    fold = np.arange(300) % 5
    found, _ = rivals.probed(read, correct, fold)
    for f in (0, 3):
        rest = fold != f
        shown = make_pipeline(StandardScaler(), PCA(12)).fit(read[1][rest])
        search = GridSearchCV(
            LogisticRegression(max_iter=1000),
            {"C": rivals.PENALTIES},
            scoring="neg_log_loss",
            cv=PredefinedSplit(fold[rest]),
        ).fit(shown.transform(read[1][rest]), correct[rest])
        expected = search.predict_proba(shown.transform(read[1][~rest]))[:, 1]
        np.testing.assert_allclose(found[1][~rest], expected, atol=2e-3)


def test_the_probe_takes_the_layer_that_predicts_best_and_sees_no_held_out_answer(stream, rng):
    read, correct = stream
    fold = np.arange(300) % 5
    by_layer, chosen = rivals.probed(read, correct, fold)
    np.testing.assert_array_equal(chosen, by_layer[1])
    assert roc_auc_score(correct, chosen) > 0.75 > 0.6 > roc_auc_score(correct, by_layer[0])
    other = np.where(fold == 1, rng.random(300) < 0.5, correct)
    again, _ = rivals.probed(read, other, fold)
    np.testing.assert_array_equal(by_layer[:, fold == 1], again[:, fold == 1])


def test_a_probe_finds_nothing_where_answers_are_permuted(rng):
    """No knowledge, and no leak of a cluster's other copies.

    Over all folds at once the area lies below a half: a fold with many right answers is left to a
    fit on few.
    """
    areas = []
    for _ in range(6):
        cluster = np.repeat(np.arange(60), 4)
        correct = np.repeat(rng.random(60) < 0.5, 4)
        stream = np.repeat(rng.normal(size=(1, 60, 30)), 4, axis=1)
        _, chosen = rivals.probed(stream, correct, cluster % 5)
        areas.append(roc_auc_score(correct, chosen))
    assert np.mean(areas) < 0.55
    # the same copies torn apart are known by heart: the case has teeth
    _, chosen = rivals.probed(stream, correct, np.arange(240) % 4)
    assert roc_auc_score(correct, chosen) > 0.75


def test_a_stream_that_is_the_same_in_all_prompts_has_no_probe(rng):
    correct = rng.random(60) < 0.5
    by_layer, _ = rivals.probed([np.ones((60, 5))], correct, np.arange(60) % 3)
    assert np.isnan(by_layer).all()


@pytest.fixture
def scored(layers, stream, rng):
    log_p, answer = layers
    read = readings.Readings(log_p, answer, {})
    weights = resampling.resample_weights(400, 100, 0)
    streams = rng.normal(size=(2, 400, 8))
    return read, rivals.table(read, streams, np.arange(400) % 5, weights, 10)


def test_scores_are_those_of_other_libraries(scored):
    read, found = scored
    values = found.set_index(["rival", "layer", "metric"])["value"].sort_index()
    last = values.loc[rivals.LAST, -1]
    probability, correct = np.exp(read.log_probability[-1]), read.correct[-1]
    confidence = probability.max(-1)
    assert last["accuracy"] == pytest.approx(correct.mean())
    assert last["nll"] == pytest.approx(log_loss(read.answer, probability, labels=range(4)))
    assert last["confidence_brier"] == pytest.approx(brier_score_loss(correct, confidence))
    assert last["auroc"] == pytest.approx(roc_auc_score(correct, confidence))
    assert last["ece"] == pytest.approx(ECE(10).measure(confidence, correct.astype(int)), abs=1e-6)
    assert last["nll_change"] == pytest.approx(0, abs=1e-12)
    for name in rivals.RIVALS:
        of_rival = values.loc[name, -1]
        assert of_rival["nll_change"] == pytest.approx(of_rival["nll"] - last["nll"])


def test_a_probe_keeps_the_answers_and_has_no_loss_of_options(scored):
    _, found = scored
    probe = found[found["rival"] == rivals.PROBE]
    assert set(probe["layer"]) == {-1, 0, 1}
    assert not {"nll", "brier", "nll_change"} & set(probe["metric"])
    accuracy = found[found["metric"] == "accuracy"].set_index(["rival", "layer"])["value"]
    assert accuracy[rivals.PROBE, 1] == accuracy[rivals.LAST, -1]
