"""Steering in one masked pass against one full pass a setting, with a hook written here."""

import pytest
import torch

from layercal import directions, model, steering

IDS = [5, 9, 2, 77, 31, 8, 40]
OPTIONS = torch.tensor([11, 23, 5, 90])


def naive_steered(causal, layer, vector):
    """One full pass in which the output of block ``layer`` is moved at the last token."""

    def move(module, args, output):
        output[0, -1] += vector
        return output

    handle = causal.model.layers[layer - 1].register_forward_hook(move)
    with torch.no_grad():
        logits = causal(torch.tensor([IDS])).logits[0, -1]
    handle.remove()
    return logits[OPTIONS]


def test_masked_pass_equals_full_passes(tiny_model):
    read = model.LensModel(tiny_model)
    prefix = read.prefix(torch.tensor(IDS))
    vectors = 3 * torch.randn(7, read.width, generator=torch.Generator().manual_seed(1))
    for layer in range(1, read.n_layers + 1):
        for chunk in (2, 512):
            found = steering.steered_logits(
                read, prefix, layer, vectors, OPTIONS, "through-network", chunk
            )
            expected = torch.stack([naive_steered(tiny_model, layer, v) for v in vectors])
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_prefix_is_left_as_it_was(tiny_model):
    read = model.LensModel(tiny_model)
    prefix = read.prefix(torch.tensor(IDS))
    torch.testing.assert_close(prefix.residuals, read.residuals(torch.tensor([IDS]))[0])
    moved = prefix.residuals[2] + torch.randn(3, read.width)
    first = read.continue_from(prefix, 2, moved)
    torch.testing.assert_close(read.continue_from(prefix, 2, moved), first)
    assert len(read.decoder.layers) == read.n_layers
    assert {layer.get_seq_length() for layer in prefix.cache.layers} == {len(IDS) - 1}


def test_lens_mode_reads_at_the_steered_layer(tiny_model):
    read = model.LensModel(tiny_model)
    prefix = read.prefix(torch.tensor(IDS))
    vector = torch.randn(1, read.width)
    found = steering.steered_logits(read, prefix, 3, vector, OPTIONS, "lens")
    expected = read.unembed(prefix.residuals[3] + vector[0])[OPTIONS]
    torch.testing.assert_close(found[0], expected, atol=1e-5, rtol=1e-5)


def test_sweep_adds_alpha_times_the_mean_norm(tiny_model):
    read = model.LensModel(tiny_model)
    h = read.residuals(torch.tensor([IDS]))
    vectors = directions.random_directions(2, read.width, 0)
    norms = directions.mean_norms(h).expand(2, -1)
    found = steering.sweep_prompt(
        read, IDS, OPTIONS, vectors, norms, [2, 5], [-1.0, 0, 0.5], ["through-network", "lens"]
    )
    for v in range(2):
        for place, layer in enumerate([2, 5]):
            for a, alpha in enumerate([-1.0, 0, 0.5]):
                moved = alpha * h[0, layer].norm() * vectors[v]
                torch.testing.assert_close(
                    found["through-network"][v, place, a],
                    naive_steered(tiny_model, layer, moved),
                    atol=1e-4,
                    rtol=1e-4,
                )
    torch.testing.assert_close(found["lens"][:, 1], found["through-network"][:, 1])


def test_sweep_layers_keep_both_ends():
    assert steering.sweep_layers(24, 28, 8) == [24, 25, 26, 27, 28]
    assert steering.sweep_layers(30, 30, 8) == [30]
    thinned = steering.sweep_layers(3, 30, 4)
    assert thinned == [3, 12, 21, 30]


@pytest.fixture
def residuals():
    return torch.randn(40, 6, 8, generator=torch.Generator().manual_seed(0)).cumsum(1)


def test_update_mean_equals_a_loop(residuals):
    total = torch.zeros(8)
    for question in residuals:
        for layer in (3, 4, 5):
            update = question[layer] - question[layer - 1]
            total += update / update.norm()
    expected = total / total.norm()
    torch.testing.assert_close(directions.update_mean(residuals, 3), expected)


def test_cross_fit_leaves_out_both_folds(residuals):
    fold = torch.arange(40) % 4
    fitted = directions.cross_fit(lambda r: directions.update_mean(r, 3), residuals, fold, 4)
    assert fitted.shape == (4, 4, 8)
    for f in range(4):
        for g in range(4):
            kept = residuals[[i for i in range(40) if i % 4 not in (f, g)]]
            torch.testing.assert_close(fitted[f, g], directions.update_mean(kept, 3))


def test_directions_of_a_question_never_saw_its_fold(residuals):
    fold = torch.arange(40) % 4

    def fits(r):
        return directions.cross_fit(lambda s: directions.update_mean(s, 3), r, fold, 4)

    norms = directions.cross_fit(directions.mean_norms, residuals, fold, 4)
    random = directions.random_directions(3, 8, 0)
    changed = residuals.clone()
    changed[fold == 1] = torch.randn(10, 6, 8)
    changed_norms = directions.cross_fit(directions.mean_norms, changed, fold, 4)
    one = steering.directions_of(
        {"fold": fold, "norms": norms, "random": random, "update-mean": fits(residuals)},
        ["update-mean"],
        5,
    )
    other = steering.directions_of(
        {"fold": fold, "norms": changed_norms, "random": random, "update-mean": fits(changed)},
        ["update-mean"],
        5,
    )
    assert fold[5] == 1 and one[0].shape == (7, 8)
    torch.testing.assert_close(one[0], other[0])
    torch.testing.assert_close(one[1], other[1])


def test_random_directions_are_units_and_repeat():
    drawn = directions.random_directions(5, 64, 3)
    torch.testing.assert_close(drawn.norm(dim=-1), torch.ones(5))
    torch.testing.assert_close(drawn, directions.random_directions(5, 64, 3))
    assert (drawn @ drawn.T - torch.eye(5)).abs().max() < 0.7
