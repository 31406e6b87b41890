"""Tuned lens and option orders, against closed forms written another way."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.linear_model import Ridge

from layercal.metrics import readings
from layercal.model import lens
from layercal.prompts import rotation


@pytest.fixture
def residuals():
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(60, 4, 12, generator=generator)
    mixing = torch.randn(12, 12, generator=generator)
    h[:, 3] = h[:, 2] @ mixing + 5 + 0.1 * torch.randn(60, 12, generator=generator)
    h[:, 0] = 1.0  # the same token everywhere
    return h


FOLD = torch.arange(60) % 3


def test_translators_equal_scikit_learn(residuals):
    penalty = torch.tensor([0.1])
    for layer in (1, 2):
        found = lens.translate(residuals[:, layer], residuals[:, 3], FOLD, penalty)
        for f in range(3):
            train, held = f != FOLD, f == FOLD
            x, y = residuals[train, layer].numpy(), residuals[train, 3].numpy()
            scale = (np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2).mean()
            fitted = Ridge(alpha=0.1 * scale).fit(x, y - x)
            expected = residuals[held, layer].numpy() + fitted.predict(residuals[held, layer])
            np.testing.assert_allclose(found[held], expected, atol=1e-3)


def test_penalty_has_the_least_leave_one_out_error(residuals):
    """The chosen penalty, found again by fitting without each question in turn."""
    x, y = residuals[:40, 1].numpy(), (residuals[:40, 3] - residuals[:40, 1]).numpy()
    scale = (np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2).mean()
    errors = []
    for penalty in lens.PENALTIES.numpy():
        missed = 0
        for i in range(40):
            kept = np.arange(40) != i
            # the scale of the whole split, as in the closed form
            fitted = Ridge(alpha=penalty * scale).fit(x[kept], y[kept])
            missed += ((fitted.predict(x[i : i + 1])[0] - y[i]) ** 2).sum()
        errors.append(missed)
    best = Ridge(alpha=lens.PENALTIES.numpy()[np.argmin(errors)] * scale).fit(x, y)
    found = lens._fit_ridge(torch.tensor(x), torch.tensor(y), lens.PENALTIES)
    np.testing.assert_allclose(found(residuals[40:, 1]), best.predict(residuals[40:, 1]), atol=2e-3)


def test_a_linear_stream_is_read_early(residuals):
    """Where the last layer is an affine map of an earlier one, the tuned lens finds it."""
    final = residuals[:, 3]
    error = (lens.translate(residuals[:, 2], final, FOLD) - final).norm() / final.norm()
    assert error < 0.05
    noise = (lens.translate(residuals[:, 1], final, FOLD) - final).norm() / final.norm()
    assert noise > 0.3  # and nothing where there is nothing to find


def test_identical_residuals_are_carried_to_the_mean(residuals):
    found = lens.translate(residuals[:, 0], residuals[:, 3], FOLD)
    for f in range(3):
        mean = residuals[f != FOLD, 3].mean(0)
        torch.testing.assert_close(found[f == FOLD], mean.expand(20, -1), atol=1e-4, rtol=1e-4)


def test_held_out_questions_do_not_influence_their_translator(residuals):
    changed = residuals[:, 3].clone()
    changed[FOLD == 1] = 100.0
    for h in residuals[:, :3].unbind(1):
        one, other = (lens.translate(h, final, FOLD) for final in (residuals[:, 3], changed))
        torch.testing.assert_close(one[FOLD == 1], other[FOLD == 1])
        assert not torch.equal(one[FOLD == 0], other[FOLD == 0])


def test_rotation_moves_the_answer_along():
    row = {"choices": ["w", "x", "y", "z"], "answer": 2}
    for by in range(4):
        turned = rotation.rotate(row, by)
        assert turned["choices"][turned["answer"]] == "y"
        assert turned["choices"] == [row["choices"][(j + by) % 4] for j in range(4)]


def lens_table(logits, answer):
    """Lens table of (questions, rotations, layers, 4) logits; answer is the option."""
    rows = [
        {
            "question_id": f"q{q}",
            "permutation": r,
            "answer": (answer[q] - r) % 4,
            "layer": layer,
            **dict(zip([f"logit_{c}" for c in "ABCD"], logits[q, r, layer], strict=True)),
            "option_mass": 0.5,
            "entropy": 1.0,
        }
        for q in range(logits.shape[0])
        for r in range(logits.shape[1])
        for layer in range(logits.shape[2])
    ]
    return pd.DataFrame(rows)


def test_pure_letter_bias_averages_out(rng):
    """A model that sees letters only: sure of A in every rotation, at chance once averaged."""
    logits = np.zeros((8, 4, 2, 4))
    logits[..., 0] = 5
    found = readings.from_options(lens_table(logits, rng.integers(0, 4, 8)))
    assert list(found) == ["averaged", *(f"rotation-{r}" for r in range(4))]
    assert (found["rotation-2"].confidence > 0.9).all()
    assert (found["rotation-2"].per_question()["predicted_A"] == 1).all()
    np.testing.assert_allclose(found["averaged"].confidence, 0.25)
    assert (found["averaged"].extra["agree"] == 0).all()


def test_averaging_keeps_knowledge(rng):
    """A model that sees options only: every rotation says the same, and so does the average."""
    answer = rng.integers(0, 4, 8)
    by_option = rng.normal(size=(8, 2, 4))
    logits = np.stack([np.roll(by_option, -r, -1) for r in range(4)], 1)
    found = readings.from_options(lens_table(logits, answer))
    p = np.exp(by_option) / np.exp(by_option).sum(-1, keepdims=True)
    np.testing.assert_allclose(found["averaged"].confidence, p.max(-1).T)
    np.testing.assert_array_equal(
        found["averaged"].correct, (by_option.argmax(-1) == answer[:, None]).T
    )
    for r in range(4):
        np.testing.assert_array_equal(found[f"rotation-{r}"].correct, found["averaged"].correct)
    assert (found["averaged"].extra["agree"] == 1).all()


def test_a_question_that_is_never_rotated_is_read_as_it_is(rng):
    """Averaged, it is its one reading; whether rotations agree is not asked of it."""
    logits = rng.normal(size=(6, 4, 2, 4))
    logits[2:4] = logits[2:4, :1]
    answer = rng.integers(0, 4, 6)
    table = lens_table(logits, answer)
    kept = table["question_id"].isin(["q2", "q3"])
    table.loc[kept, "answer"] = np.repeat(answer[2:4], 8)
    found = readings.from_options(table)
    others = readings.from_options(lens_table(logits[[0, 1, 4, 5]], answer[[0, 1, 4, 5]]))
    p = np.exp(logits[2:4, 0]) / np.exp(logits[2:4, 0]).sum(-1, keepdims=True)
    averaged = found["averaged"]
    np.testing.assert_allclose(averaged.confidence[:, 2:4], p.max(-1).T)
    np.testing.assert_array_equal(averaged.correct[:, 2:4], (p.argmax(-1) == answer[2:4, None]).T)
    rotated = averaged.take([0, 1, 4, 5])
    np.testing.assert_allclose(rotated.logits, others["averaged"].logits)
    assert np.isnan(averaged.extra["agree"][:, 2:4]).all()
    np.testing.assert_array_equal(rotated.extra["agree"], others["averaged"].extra["agree"])

    def agree(read):
        made = readings.metric_table(read, [2], [1], 50, 0)
        return made[made["metric"] == "agree"].reset_index(drop=True)

    expected = others["averaged"].extra["agree"].mean(-1)
    np.testing.assert_allclose(agree(averaged)["value"], expected)
    never = agree(averaged.take([2, 3]))
    assert never["value"].isna().all()
    assert set(never["reason"]) == {"no question's options are rotated"}


def test_one_order_is_read_as_it_is(rng):
    logits = rng.normal(size=(5, 1, 3, 4))
    found = readings.from_options(lens_table(logits, rng.integers(0, 4, 5)))
    assert list(found) == ["as-is"]
    np.testing.assert_array_equal(found["as-is"].logits, logits[:, 0].swapaxes(0, 1))
