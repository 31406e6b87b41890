"""Estimators against loops, finite differences and scikit-learn; planted directions found."""

import numpy as np
import pandas as pd
import pytest
import torch
from families import tiny
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from layercal import InputError
from layercal.metrics import calibration
from layercal.metrics.phase import decision_layer
from layercal.model import LensModel
from layercal.results import Residuals, Run
from layercal.steering import directions
from layercal.steering.fitted import Direction, Fitted

OPTIONS = torch.tensor([11, 23, 5, 90])
ONE = Direction(name="x", kind="estimator", estimator="x")


@pytest.fixture(scope="module")
def split():
    """Random prompts of a tiny model, with answers that the last layer often gives."""
    generator = torch.Generator().manual_seed(0)
    model = LensModel(tiny("llama"))
    residuals = model.residuals(torch.randint(0, 96, (60, 7), generator=generator))
    logits = model.option_logits(residuals, OPTIONS).numpy()
    rng = np.random.default_rng(0)
    answer = np.where(rng.random(60) < 0.6, logits[:, -1].argmax(-1), rng.integers(0, 4, 60))
    return directions.Split(residuals, logits, answer, OPTIONS, model)


def test_update_mean_equals_a_loop(split):
    final, total = split.residuals.shape[1] - 1, 0
    for question in split.residuals:
        for layer in range(final - 2, final + 1):
            update = question[layer] - question[layer - 1]
            total = total + update / update.norm()
    found = directions.update_mean(split, [3])
    torch.testing.assert_close(found, (total / total.norm())[None])


def test_middle_mean_is_taken_around_the_middle(split):
    assert split.residuals.shape[1] == 6
    total = 0
    for question in split.residuals:  # of 5 blocks, those in the middle are 2, 3, 4
        for layer in (2, 3, 4):
            update = question[layer] - question[layer - 1]
            total = total + update / update.norm()
    torch.testing.assert_close(directions.middle_mean(split, [3], 0.5)[0], total / total.norm())


def test_middle_means_are_taken_at_several_depths(split):
    found = directions.middle_means()
    names = [one.name for one in found]
    assert names == ["middle-mean-0.25", "middle-mean-0.5", "middle-mean-0.75"]
    assert [(one.kind, one.depth) for one in found] == [("control", d) for d in (0.25, 0.5, 0.75)]
    vectors = torch.cat([fit(split, [3]) for fit in found.values()])
    torch.testing.assert_close(vectors[1:2], directions.middle_mean(split, [3], 0.5))
    assert (vectors @ vectors.T - torch.eye(3)).triu(1).abs().max() < 0.999


def test_peak_is_that_of_the_split_alone(split):
    confidence = softmax(split.logits.astype(float), -1).max(-1)
    errors = [calibration.ece(confidence[:, layer], split.correct[:, layer]) for layer in range(6)]
    first = min(decision_layer(split.correct.mean(0), 0.02), 4)
    assert split.peak == max(range(first, 5), key=lambda layer: errors[layer])
    for n_bins in (2, 40):
        errors = calibration.ece(confidence.T, split.correct.T, n_bins)
        made = directions.replace(split, n_bins=n_bins, tolerance=1.0)
        assert made.peak == errors[:5].argmax()


def test_phase_directions(split):
    differences = (split.residuals[:, -1] - split.residuals[:, split.peak]).numpy()
    mean = differences.mean(0)
    found = directions.phase_mean(split, [])[0].numpy()
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean), atol=1e-5)
    values, vectors = np.linalg.eigh(differences.T.astype(float) @ differences)
    top = vectors[:, np.argsort(values)[::-1][:2]]
    expected = top @ (top.T @ mean)
    found = directions.phase_pca(split, [], 2)[0].numpy()
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-4)
    everything = directions.phase_pca(split, [], 1000)
    torch.testing.assert_close(everything, directions.phase_mean(split, []), atol=1e-4, rtol=0)
    asked = list(directions.estimators(["phase-pca", "probe"], [1, 4]))
    assert [one.name for one in asked] == ["phase-pca-1", "phase-pca-4", "probe"]
    assert [(one.estimator, one.rank) for one in asked] == [
        ("phase-pca", 1),
        ("phase-pca", 4),
        ("probe", None),
    ]


def test_principal_finds_a_planted_subspace(split):
    generator = torch.Generator().manual_seed(3)
    planted = torch.linalg.qr(torch.randn(split.model.width, 2, generator=generator)).Q
    residuals = split.residuals.clone()
    noise = 0.01 * torch.randn(60, split.model.width, generator=generator)
    amounts = torch.randn(60, 2, generator=generator) * torch.tensor([3.0, 1.0]) + 1
    residuals[:, -1] = residuals[:, 2] + amounts @ planted.T + noise
    made = directions.replace(split, residuals=residuals)
    basis = directions.principal(made, 2, 2)
    torch.testing.assert_close(basis @ basis.T, torch.eye(2), atol=1e-5, rtol=0)
    assert torch.linalg.svdvals(basis @ planted).min() > 0.999
    assert (basis @ (residuals[:, -1] - residuals[:, 2]).mean(0) >= 0).all()
    patched = directions.patched(residuals[:, 2], made.differences(2), basis, [0, 1, 2])
    torch.testing.assert_close(patched[:, 0], residuals[:, 2])
    torch.testing.assert_close(patched[:, 2], residuals[:, -1], atol=0.1, rtol=0)
    assert (patched[:, 1] - residuals[:, -1]).norm() > 3 * (patched[:, 2] - residuals[:, -1]).norm()


def loss(split, layer, vector):
    logits = split.model.option_logits(split.residuals[:, layer] + vector, OPTIONS).double()
    confidence = logits.softmax(-1).amax(-1)
    return ((confidence - torch.as_tensor(split.correct[:, layer]).double()) ** 2).mean().item()


def test_gradient_is_that_of_finite_differences(split):
    found = directions.gradient(split, [2, 5])
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2))
    for place, layer in enumerate([2, 5]):
        slopes, step = [], 1e-2
        for unit in torch.eye(split.model.width):
            up, down = (loss(split, layer, sign * step * unit) for sign in (1, -1))
            slopes.append((up - down) / (2 * step))
        expected = -torch.tensor(slopes)
        assert torch.cosine_similarity(found[place].double(), expected, dim=0) > 0.999
        assert loss(split, layer, 0.05 * found[place]) < loss(split, layer, 0)


def test_gradient_skips_options_that_are_not_there(split):
    logits = split.logits.copy()
    logits[:, :, 3] = -np.inf
    few = directions.replace(split, logits=logits, answer=split.answer % 3)
    three = directions.replace(few, logits=logits[:, :, :3], option_ids=OPTIONS[:3])
    torch.testing.assert_close(directions.gradient(few, [4]), directions.gradient(three, [4]))


def test_probe_is_the_regression_in_all_coordinates(split):
    """In fewer coordinates than dimensions the ridge penalty is the same: so is the solution."""
    some = split.take(np.arange(20))
    h = some.residuals[:, 4].numpy()
    h = h - h.mean(0)
    h = h / np.sqrt((h**2).sum(-1).mean())
    fitted = LogisticRegression(C=1.0, max_iter=10000, tol=1e-8).fit(h, some.correct[:, 4])
    expected = fitted.coef_[0] / np.linalg.norm(fitted.coef_[0])
    np.testing.assert_allclose(directions.probe(some, [4])[0].numpy(), expected, atol=1e-3)
    all_right = directions.replace(some, answer=some.logits[:, 4].argmax(-1))
    assert not directions.probe(all_right, [4]).any()


@pytest.mark.parametrize("name", [*directions.ESTIMATORS, "phase-pca"])
def test_fits_never_see_the_folds_they_leave_out(split, name):
    ((_, fit),) = directions.estimators([name], [2]).items()
    fold = np.arange(60) % 4
    found = directions.cross_fit(lambda part: fit(part, [3, 4]), split, fold, 4)
    assert found.shape[:2] == (4, 4) and found.shape[2] in (1, 2)
    changed = split.residuals.clone()
    changed[fold == 1] = torch.randn(15, 6, split.model.width)
    other = directions.replace(
        split, residuals=changed, answer=np.where(fold == 1, 0, split.answer)
    )
    again = directions.cross_fit(lambda part: fit(part, [3, 4]), other, fold, 4)
    torch.testing.assert_close(again[:, 1], found[:, 1], atol=0, rtol=0)
    torch.testing.assert_close(again[1], found[1], atol=0, rtol=0)
    assert (again[0, 2] - found[0, 2]).abs().max() > 1e-4
    for f in range(4):
        for g in range(4):
            kept = split.take((fold != f) & (fold != g))
            torch.testing.assert_close(found[f, g], fit(kept, [3, 4]), atol=1e-6, rtol=0)


def test_questions_of_no_fold_are_always_fitted_on(split):
    fold = np.where(np.arange(60) < 30, -1, np.arange(60) % 3)
    found = directions.cross_fit(lambda part: directions.update_mean(part, []), split, fold, 3)
    kept = split.take((fold != 0) & (fold != 2))
    torch.testing.assert_close(found[0, 2], directions.update_mean(kept, []))


class FewLayers(Residuals):
    """Residuals of which no more than four layers, those of three updates, are read at a time."""

    def __getitem__(self, key):
        found = super().__getitem__(key)
        if isinstance(found, Residuals):
            return FewLayers(found.shards, found.rows)
        assert found.ndim == 2 or found.shape[1] <= 4
        return found


def few_layers(residuals):
    return FewLayers(residuals.split([7, 40, 13]), torch.arange(60))


def test_residuals_are_read_a_few_layers_at_a_time(split):
    sharded = directions.replace(split, residuals=few_layers(split.residuals))
    fold, layers = np.arange(60) % 3, [3, 4]
    fits = directions.estimators([*directions.ESTIMATORS, "phase-pca"], [2])
    for fit in (*fits.values(), *directions.middle_means().values()):
        found, like = (
            directions.cross_fit(lambda part, fit=fit: fit(part, layers), one, fold, 3)
            for one in (sharded, split)
        )
        assert torch.equal(found, like)
        rows, like = (
            directions.describe(ONE, found, found, one, layers) for one in (sharded, split)
        )
        assert rows == like
    assert torch.equal(directions.mean_norms(sharded), directions.mean_norms(split))


def test_description(split):
    fold = np.arange(60) % 3

    def table(fit):
        fitted = directions.cross_fit(lambda part: fit(part, [3, 4]), split, fold, 3)
        primary = directions.cross_fit(
            lambda part: directions.update_mean(part, []), split, fold, 3
        )
        return fitted, primary, directions.describe(ONE, fitted, primary, split, [3, 4])

    fitted, _, rows = table(directions.update_mean)
    assert len(rows) == 3 * 5 and {row["name"] for row in rows} == {"x"}
    for row in rows:
        update = split.residuals[:, row["layer"]] - split.residuals[:, row["layer"] - 1]
        own = fitted[row["fold"], row["fold"], 0]
        cosines = torch.cosine_similarity(update, own, dim=-1)
        assert row["cosine"] == pytest.approx(cosines.mean().item(), abs=1e-5)
        assert row["explained_variance"] == pytest.approx(cosines.pow(2).mean().item(), abs=1e-5)
        assert row["cosine_primary"] == pytest.approx(1, abs=1e-5)
    fitted, primary, rows = table(directions.probe)
    assert [row["layer"] for row in rows] == [3, 3, 3, 4, 4, 4]
    expected = fitted[1, 1, 1] @ primary[1, 1, 0]
    assert rows[4]["cosine_primary"] == pytest.approx(expected.item(), abs=1e-5)
    # the first estimator may be the one that depends on the layer
    rows = directions.describe(ONE, primary, fitted, split, [3, 4])
    assert [row["layer"] for row in rows] == [3, 3, 3, 4, 4, 4]
    assert rows[4]["cosine_primary"] == pytest.approx(expected.item(), abs=1e-5)


@pytest.fixture(scope="module")
def planted():
    """A model whose last three blocks write one vector that the head does not see.

    It grows the norm and so only scales confidence down; answers are drawn from what the last layer
    says, which is thus calibrated, and the layers below are overconfident.
    """
    causal = tiny("llama", mlp_bias=True)
    head = causal.lm_head.weight.data
    head.mul_(40 / head.std() / head.shape[1])
    seen = torch.linalg.svd(head * causal.model.norm.weight.data).Vh
    hidden = seen[-1]
    gain = causal.model.norm.weight.data
    head.sub_((head * gain @ hidden)[:, None] * hidden / gain)
    for block in causal.model.layers[-3:]:
        block.mlp.down_proj.weight.data.mul_(0.02)
        block.self_attn.o_proj.weight.data.mul_(0.02)
        block.mlp.down_proj.bias.data.copy_(8 * hidden)
    model = LensModel(causal)
    ids = torch.randint(0, 96, (300, 7), generator=torch.Generator().manual_seed(5))
    residuals = model.residuals(ids)
    logits = model.option_logits(residuals, OPTIONS).numpy()
    p = softmax(logits[:, -1].astype(float), -1)
    draws = np.random.default_rng(0).random((300, 1))
    answer = (draws > p.cumsum(-1)).sum(-1).clip(0, 3)
    return hidden, directions.Split(residuals, logits, answer, OPTIONS, model)


@pytest.mark.parametrize("name", ["update-mean", "phase-mean", "phase-pca-1"])
def test_a_planted_direction_is_recovered(planted, name):
    hidden, split = planted
    ((_, fit),) = directions.estimators([name.removesuffix("-1")], [1]).items()
    found = fit(split, [])[0]
    assert torch.cosine_similarity(found, hidden, dim=0) > 0.95


def test_a_planted_direction_corrects_confidence_and_keeps_accuracy(planted):
    _, split = planted
    h = split.residuals[:, split.residuals.shape[1] - 4]
    found = directions.update_mean(split, [])[0]
    generator = torch.Generator().manual_seed(0)
    random = torch.randn(split.model.width, generator=generator)
    random = random / random.norm()
    eta = 2 * h.norm(dim=-1).mean()
    still, steered, astray = (
        split.model.option_logits(h + eta * vector, OPTIONS)
        for vector in (torch.zeros_like(found), found, random)
    )
    before, after, control = (
        calibration.ece(z.softmax(-1).amax(-1).numpy(), z.argmax(-1).numpy() == split.answer)
        for z in (still, steered, astray)
    )
    assert after < before / 2 and control > before
    assert (steered.argmax(-1) == still.argmax(-1)).float().mean() > 0.97
    assert (astray.argmax(-1) == still.argmax(-1)).float().mean() < 0.9


def test_no_block_writes_layer_0(split):
    """Directions that may be added there have no update to be compared with."""
    fold = np.arange(60) % 3
    fitted = directions.cross_fit(lambda part: directions.probe(part, [0, 2]), split, fold, 3)
    rows = directions.describe(ONE, fitted, fitted, split, [0, 2])
    assert [row["layer"] for row in rows] == [0, 0, 0, 2, 2, 2]
    assert all(np.isnan([row["cosine"], row["explained_variance"]]).all() for row in rows[:3])
    for row in rows:
        own = fitted.diagonal()[row["layer"] // 2].T
        assert row["agreement"] == pytest.approx((own @ own[row["fold"]]).min().item(), abs=1e-6)
    update = split.residuals[:, 2] - split.residuals[:, 1]
    cosines = torch.cosine_similarity(update, fitted[0, 0, 1], dim=-1)
    assert rows[3]["cosine"] == pytest.approx(cosines.mean().item(), abs=1e-5)


def test_the_middle_of_a_model_of_one_block(split):
    few = directions.replace(split, residuals=split.residuals[:, :2], blocks=3)
    own = directions.update_mean(few, [])
    for fit in directions.middle_means().values():
        torch.testing.assert_close(fit(few, []), own)
    assert own.norm().item() == pytest.approx(1)


def test_read_only_masks_are_taken_without_a_warning(split, recwarn):
    mask = np.arange(60) < 30
    mask.flags.writeable = False  # as those out of pandas are
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        kept = split.take(mask)
    finally:
        torch.set_warn_always(always)
    assert torch.equal(kept.residuals, split.residuals[:30])
    assert not recwarn.list


def test_what_directions_are_is_saved_with_their_vectors(tmp_path):
    """Names are free: nothing of what a direction is is read out of them."""
    plain = Direction(name="mean from a (rotate)", kind="estimator", estimator="mean", rank=2)
    some = [
        plain,
        plain.from_source("category:STEM"),
        plain.of_part("null-space"),
        plain.as_control("rescale"),
    ]
    vectors = {one: torch.randn(3, 3, 1, 2, 8) for one in some}
    given = {"controls": torch.randn(1, 4, 8), "norms": torch.rand(3, 3, 6)}
    prompts = {"question_id": "q", "option_ids": [[1]], "input_ids": [[2]]}
    table = pd.DataFrame(prompts).assign(prompt="")
    run, path = Run(tmp_path / "prompts.parquet", table), tmp_path / "directions.safetensors"
    Fitted(directions=vectors, layers=[2], fold=torch.tensor([0]), **given).save(run, path)
    read = Fitted.load(run, path)
    assert list(read.directions) == some and read.layers == [2]
    for one, fits in vectors.items():
        assert torch.equal(read.directions[one], fits)
    done = [one.direction for one in read.variants()]
    assert done == [*some[:3], *map(plain.as_control, ("subtract", "rotate", "rescale")), some[3]]
    assert [one.fitted_on for one in some] == [None, "category:STEM", None, None]
    run.write(path, {"fold": torch.tensor([0])})
    with pytest.raises(InputError, match="does not say what its directions are"):
        Fitted.load(run, path)
