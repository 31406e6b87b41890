"""Steering in one masked pass against one full pass a setting, with a hook written here."""

import itertools
from dataclasses import replace

import pytest
import torch
from families import BATCHED, blocks_of, tiny

from layercal import model
from layercal.steering import interventions
from layercal.steering.fitted import Direction, Fitted

IDS = [5, 9, 2, 77, 31, 8, 40]
OPTIONS = torch.tensor([11, 23, 5, 90])


def naive_steered(causal, layer, move_of, positions=slice(-1, None)):
    """One full pass in which the output of block ``layer`` is moved at the last token, or at all.

    By a vector, or by one that depends on the stream there.
    """

    def move(module, args, output):
        for h in output[0, positions]:
            h += move_of(h.clone()) if callable(move_of) else move_of
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
            found, _ = interventions.steered_logits(
                read,
                prefix,
                layer,
                prefix.residuals[layer] + vectors,
                OPTIONS,
                "through-network",
                chunk,
            )
            expected = torch.stack([naive_steered(tiny_model, layer, v) for v in vectors])
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(params=["llama", "bloom", "gemma3_text"])
def steerable(request):
    """Families steered in the masked pass, as rows, and as rows because of a sliding window."""
    causal = tiny(request.param)
    read = model.LensModel(causal)
    assert read.takes_masked_pass == (request.param not in BATCHED)
    ids = torch.tensor(IDS)
    prefix, stream = read.prefix(ids), read.streams(ids, [2])[0]
    assert prefix.in_window == (request.param != "gemma3_text")

    def at_answer(vectors, chunk):
        changed = prefix.residuals[2] + vectors
        return interventions.steered_logits(
            read, prefix, 2, changed, OPTIONS, "through-network", chunk
        )

    def everywhere(vectors, settings):
        changed = stream + vectors[:, None]
        tokens = settings * len(IDS)
        return interventions.steered_logits(
            read, prefix, 2, changed, OPTIONS, "all-positions", tokens
        )

    return blocks_of(causal, request.param)[-1], {at_answer: 1, everywhere: len(IDS)}


@pytest.mark.parametrize("bound", [1, 4])
def test_no_block_sees_more_tokens_at_once_than_the_bound_allows(steerable, bound):
    """However many settings the sweep has."""
    block, tokens_of = steerable
    for steer, tokens in tokens_of.items():
        for n in (5, 40):
            seen = []
            handle = block.register_forward_pre_hook(
                lambda module, args, kwargs, seen=seen: seen.append(
                    (args[0] if args else kwargs["hidden_states"]).shape[:2].numel()
                ),
                with_kwargs=True,
            )
            steer(torch.ones(n, 32), bound)
            handle.remove()
            assert max(seen) == bound * tokens and sum(seen) == n * tokens


def test_one_chunk_equals_many(steerable):
    vectors = 3 * torch.randn(9, 32, generator=torch.Generator().manual_seed(1))
    for steer in steerable[1]:
        for one, many in zip(steer(vectors, 512), steer(vectors, 2), strict=True):
            assert (one[0] - one[1:]).abs().amax(-1).min() > 1e-2
            torch.testing.assert_close(many, one, atol=1e-4, rtol=1e-4)


def test_lower_blocks_run_once_for_all_changes_everywhere(tiny_model):
    read = model.LensModel(tiny_model)
    fitted, alphas = made_up_sweep(read), [-1.0, 0, 0.5]
    fitted.layers = [2]
    prefix, ran = read.prefix(torch.tensor(IDS)), []
    for layer in tiny_model.model.layers:
        layer.mlp.register_forward_hook(lambda module, *_: ran.append(module))
    interventions.sweep_prompt(
        read, prefix, OPTIONS, fitted, 1, alphas, ["all-positions"], len(IDS)
    )
    settings = (6 * 3 + 2) * 2 + 1
    expected = [1, 1, *[1 + settings] * 3]
    assert [ran.count(layer.mlp) for layer in tiny_model.model.layers] == expected


def test_a_change_everywhere_at_the_last_layer_acts_at_the_answer(tiny_model):
    read, ids = model.LensModel(tiny_model), torch.tensor(IDS)
    prefix, stream = read.prefix(ids), read.streams(ids, [5])[0]
    vectors = torch.randn(6, read.width)
    everywhere = stream + vectors[:, None]
    found = interventions.steered_logits(read, prefix, 5, everywhere, OPTIONS, "all-positions")
    changed = prefix.residuals[5] + vectors
    expected = interventions.steered_logits(read, prefix, 5, changed, OPTIONS, "through-network")
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
    changed = prefix.residuals[3] + torch.randn(1, read.width)
    live, frozen = interventions.steered_logits(read, prefix, 3, changed, OPTIONS, "lens")
    torch.testing.assert_close(live[0], read.unembed(changed[0])[OPTIONS], atol=1e-5, rtol=1e-5)
    expected = read.option_logits(changed, OPTIONS, frozen_at=prefix.residuals[3])
    torch.testing.assert_close(frozen, expected)
    assert (live - frozen).abs().max() > 1e-3


def fits(width, layers=2, folds=3, rank=1, seed=0):
    """Made-up fits: of K x K fold pairs, unit vectors or orthonormal bases."""
    drawn = torch.randn(
        folds, folds, layers, width, rank, generator=torch.Generator().manual_seed(seed)
    )
    return torch.linalg.qr(drawn).Q.mT


def direction(name):
    return Direction(name=name, kind="estimator", estimator=name)


def made_up_sweep(read):
    norms = read.residuals(torch.tensor([IDS]))[0].norm(dim=-1)
    subspace = direction("space").as_control("rescale")
    return Fitted(
        directions={
            direction("first"): fits(read.width),
            direction("second"): fits(read.width, layers=1, seed=1),
            subspace: fits(read.width, layers=1, rank=3),
        },
        controls=fits(read.width, folds=2, seed=4)[0].transpose(0, 1)[:, :, 0],
        norms=norms * torch.rand(3, 3, 1, generator=torch.Generator().manual_seed(2)),
        layers=[2, 5],
        fold=torch.zeros(0, dtype=torch.int64),
    )


@pytest.mark.parametrize(
    ("mode", "positions"), [("through-network", slice(-1, None)), ("all-positions", slice(None))]
)
def test_sweep_is_each_change_in_a_full_pass(tiny_model, mode, positions):
    read = model.LensModel(tiny_model)
    h = read.residuals(torch.tensor([IDS]))[0]
    fitted = made_up_sweep(read)
    norms, alphas, own = fitted.norms, [-1.0, 0, 0.5], 1
    one_by_one, two_by_two, space = fitted.directions.values()
    prefix = read.prefix(torch.tensor(IDS))
    done = [(one.direction.estimator, one.direction.intervention) for one in fitted.variants()]
    assert done == [("first", "add"), ("second", "add")] + [
        ("first", how) for how in ("subtract", "rotate", "rescale")
    ] + [("space", "rescale")]
    found = interventions.sweep_prompt(
        read, prefix, OPTIONS, fitted, own, alphas, [mode, "lens"], chunk=7
    )
    for name in (mode, "lens"):
        assert found[name].fitted.shape == found[name].frozen.shape == (6, 3, 2, 3, 4)
        assert found[name].controls.shape == (2, 2, 3, 4)

    def close(read, place, a, move):
        layer = [2, 5][place]
        expected = naive_steered(tiny_model, layer, move, positions)
        torch.testing.assert_close(read[place, a], expected, atol=1e-4, rtol=1e-4)

    for place, layer in enumerate([2, 5]):
        first = one_by_one[:, own, place, 0]
        for fold in range(3):
            for a, alpha in enumerate(alphas):
                eta = alpha * norms[fold, own, layer]
                one, basis = first[fold], space[fold, own, 0]

                def turned(at, eta=eta, one=one):
                    moved = at + eta * one
                    return moved * at.norm() / moved.norm() - at

                moves = [
                    eta * one,
                    eta * two_by_two[fold, own, 0, 0],
                    -eta * one,
                    turned,
                    lambda at, alpha=alpha, one=one: alpha * (at @ one) * one,
                    lambda at, alpha=alpha, basis=basis: alpha * basis.T @ basis @ at,
                ]
                for variant, move in enumerate(moves):
                    close(found[mode].fitted[variant, fold], place, a, move)
        for r in range(2):
            move = 0.5 * norms[own, own, layer] * fitted.controls[place, r]
            close(found[mode].controls[r], place, 2, move)
    last = (found[one].fitted[:, :, 1] for one in ("lens", mode))
    torch.testing.assert_close(*last)
    # ablating the subspace leaves nothing of the stream in it
    (gone,) = interventions.rescale(h[2], space[:1, own, 0], None, torch.tensor([-1.0]))[0]
    torch.testing.assert_close(space[0, own, 0] @ gone, torch.zeros(3), atol=1e-4, rtol=0)


def test_growth_is_that_of_the_norm_that_is_divided_by(tiny_model):
    read = model.LensModel(tiny_model)
    fitted, alphas, own = made_up_sweep(read), [0, 2.0], 1
    prefix = read.prefix(torch.tensor(IDS))
    modes = ["lens", "through-network"]
    found = interventions.sweep_prompt(read, prefix, OPTIONS, fitted, own, alphas, modes)
    for place, layer in enumerate([2, 5]):
        h = prefix.residuals[layer]
        for fold in range(3):
            eta = 2 * fitted.norms[fold, own, layer]
            first, *_ = fitted.directions.values()
            moved = h + eta * first[fold, own, place, 0]
            ends = {"lens": (moved, h)}
            final = read.continue_from(prefix, layer, moved[None])[0]
            ends["through-network"] = final, prefix.residuals[-1]
            for mode, (new, old) in ends.items():
                expected = new.pow(2).mean().sqrt() / old.pow(2).mean().sqrt()
                grown = found[mode].growth[fold, place]
                torch.testing.assert_close(grown, torch.tensor([1.0, expected]))


@pytest.fixture
def extracted(tiny_model):
    """A model, and one prompt of which only residuals are known, as another run left them."""
    read, ids = model.LensModel(tiny_model), torch.tensor(IDS)
    rounding = 1e-2 * torch.randn(read.n_layers + 1, read.width)
    return read, model.Prefix(ids[None], read.residuals(ids[None])[0] + rounding)


ALL_MODES = ["lens", "through-network", "all-positions"]


@pytest.mark.parametrize(
    "modes", [some for n in (1, 2, 3) for some in itertools.combinations(ALL_MODES, n)]
)
def test_a_prompt_that_runs_where_a_mode_needs_it_reads_as_one_that_has_run(extracted, modes):
    read, prompt = extracted
    ran = replace(read.prefix(torch.tensor(IDS)), residuals=prompt.residuals)
    found, expected = (
        interventions.sweep_prompt(read, one, OPTIONS, made_up_sweep(read), 1, [0, 0.5], modes)
        for one in (prompt, ran)
    )
    assert list(found) == list(modes)
    for mode, name in itertools.product(modes, vars(expected[modes[0]])):
        assert torch.equal(getattr(found[mode], name), getattr(expected[mode], name))


def test_read_at_the_steered_layer_no_block_runs(extracted):
    read, prompt = extracted
    fitted, modes = made_up_sweep(read), ["lens"]

    def refuse(*_):
        raise AssertionError("a block ran")

    for block in read.blocks:
        block.register_forward_pre_hook(refuse)
    interventions.sweep_prompt(read, prompt, OPTIONS, fitted, 1, [0, 0.5], modes)
    with pytest.raises(AssertionError, match="a block ran"):
        interventions.sweep_prompt(read, prompt, OPTIONS, fitted, 1, [0, 0.5], ALL_MODES[1:2])


def test_nothing_runs_behind_a_prompt_that_has_not_run(extracted):
    read, prompt = extracted
    with pytest.raises(ValueError, match="has not run"):
        read.continue_from(prompt, 2, prompt.residuals[2:3])


@pytest.mark.parametrize("mode", ALL_MODES)
def test_what_is_unsteered_is_what_was_extracted(tiny_model, mode):
    """Whatever rounding another run has: no value that the lens does not show, and no effect."""
    read = model.LensModel(tiny_model)
    fitted, alphas = made_up_sweep(read), [0, 0.5]
    prefix = read.prefix(torch.tensor(IDS))
    exact = interventions.sweep_prompt(read, prefix, OPTIONS, fitted, 1, alphas, [mode])
    rounding = 1e-2 * torch.randn(prefix.residuals.shape)
    extracted = replace(prefix, residuals=prefix.residuals + rounding)
    found = interventions.sweep_prompt(read, extracted, OPTIONS, fitted, 1, alphas, [mode])
    for place, layer in enumerate([2, 5]):
        at = layer if mode == "lens" else 5
        expected = read.option_logits(extracted.residuals[at], OPTIONS)
        read_by = found[mode]
        for logits in (*read_by.fitted, *read_by.frozen, read_by.controls):
            still = logits[:, place, 0]
            assert torch.equal(still, expected.expand_as(still))
    effect, like = (
        one[mode].fitted[:, :, 0, 1] - one[mode].fitted[:, :, 0, 0] for one in (found, exact)
    )
    assert (effect - like).abs().max() < 0.1 * like.abs().max()


def test_read_at_the_steered_layer_a_turn_is_an_addition():
    """The final norm takes scale out: as a control of adding it shows nothing."""
    for family in ("llama", "gpt2"):
        read = model.LensModel(tiny(family))
        h, alphas = torch.randn(read.width), torch.tensor([0.5, 2.0])
        basis, eta = fits(read.width)[:, 0, 0], 3 * alphas.expand(3, 2)
        turned, added = (
            read.option_logits(move(h, basis, eta, alphas), OPTIONS)
            for move in (interventions.rotate, interventions.add)
        )
        torch.testing.assert_close(turned, added, atol=1e-3, rtol=1e-3)


def test_turning_keeps_the_norm():
    h, basis = torch.randn(8), fits(8)[:, 0, 0]
    turned = interventions.rotate(
        h, basis, torch.tensor([[0.0, 3.0]] * 3), torch.tensor([0.0, 1.0])
    )
    torch.testing.assert_close(turned.norm(dim=-1), h.norm().expand(3, 2))
    torch.testing.assert_close(turned[:, 0], h.expand(3, 8))
