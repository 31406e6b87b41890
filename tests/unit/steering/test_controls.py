"""Matched controls: they change no answer, and grow the norm as the direction that they match."""

import numpy as np
import pytest
import torch
from families import tiny

from layercal.model import LensModel
from layercal.steering import controls, directions

OPTIONS = torch.tensor([11, 23, 5, 90])
LAYERS = [2, 4]


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3_text", "opt"])
def made(request):
    """A model with RMSNorm, with LayerNorm, with gains of 1 + weight, and with a projected head."""
    model = LensModel(tiny(request.param))
    generator = torch.Generator().manual_seed(0)
    residuals = model.residuals(torch.randint(0, 96, (60, 7), generator=generator))
    logits = model.option_logits(residuals, OPTIONS).numpy()
    split = directions.Split(residuals, logits, np.zeros(60, int), OPTIONS, model)
    fold = np.arange(60) % 3
    primary = directions.cross_fit(
        lambda part: directions.update_mean(part, LAYERS), split, fold, 3
    )
    return split, primary, controls.matched_directions(split, primary, LAYERS, 40, 0)


def test_they_move_no_option_apart(made):
    split, _, found = made
    for place, layer in enumerate(LAYERS):
        h = split.residuals[:, layer].float()
        eta = 3 * h.norm(dim=-1).mean()
        before = split.model.option_logits(h, OPTIONS)
        for vector in found[place][:5]:
            frozen = split.model.option_logits(h + eta * vector, OPTIONS, frozen_at=h)
            apart = (frozen - frozen[:, :1]) - (before - before[:, :1])
            assert apart.abs().max() < 1e-3 * before.abs().max()
            steered = split.model.option_logits(h + eta * vector, OPTIONS)
            assert (steered.argmax(-1) == before.argmax(-1)).float().mean() >= 0.9
        random = torch.nn.functional.normalize(torch.randn(split.model.width), dim=0)
        moved = split.model.option_logits(h + eta * random, OPTIONS, frozen_at=h)
        assert (moved - moved[:, :1] - (before - before[:, :1])).abs().max() > 0.05


def test_they_grow_the_norm_as_the_primary_does(made):
    split, primary, found = made
    fitted = primary.diagonal()[0].T.mean(0)
    for place, layer in enumerate(LAYERS):
        h = split.residuals[:, layer].float()
        for alpha in (0.5, 2.0):
            eta = alpha * h.norm(dim=-1).mean()
            grown = [
                (split.model.norm_scale(h + eta * vector) / split.model.norm_scale(h)).mean()
                for vector in (fitted, *found[place])
            ]
            # the stream of a tiny random model hardly agrees on a direction, so that the cosine
            # can be matched on average only
            assert np.mean(grown[1:]) == pytest.approx(grown[0].item(), rel=0.05)


def test_their_mean_cosine_to_the_stream_is_the_primarys(made):
    split, primary, found = made
    centred = split.model.norm_map[2]
    for place, layer in enumerate(LAYERS):
        h, v = split.residuals[:, layer].double(), primary.diagonal()[0].T.double()
        if centred:
            h, v = h - h.mean(-1, keepdim=True), v - v.mean(-1, keepdim=True)
        own = torch.cosine_similarity(h[:, None], v, dim=-1).mean()
        theirs = torch.cosine_similarity(h[:, None], found[place].double(), dim=-1).mean(0)
        torch.testing.assert_close(theirs, own.expand(40), atol=1e-5, rtol=0)


def test_they_repeat_and_differ(made):
    split, primary, found = made
    again = controls.matched_directions(split, primary, LAYERS, 40, 0)
    assert torch.equal(again, found)
    other = controls.matched_directions(split, primary, LAYERS, 40, 1)
    assert (other - found).abs().max() > 0.01
    unit = torch.nn.functional.normalize(found[0], dim=-1)
    assert ((unit @ unit.T) - torch.eye(40)).abs().max() < 0.98
