"""Longrope: prompts on both sides of the border never share a pass, and read as they do alone."""

import pytest
import torch
from families import tiny
from hypothesis import given
from hypothesis import strategies as st

from layercal import InputError, model
from layercal.model import architecture, extract

BORDER = 12
FACTORS = {"short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [4.0, 6.0, 9.0, 12.0]}
ROPE = {"rope_type": "longrope", "rope_theta": 100.0, **FACTORS}
SEVEN, TWELVE, SIXTEEN = ([first, *range(20, 19 + n)] for first, n in ((7, 7), (8, 12), (9, 16)))
# beginnings of 7, 12 and 16 tokens, ends on both sides of the border, and prompts of their own
PROMPTS = [
    *(
        [*SEVEN, *tail]
        for tail in ([1], [2, 3], [4, 5, 6, 7, 8], [9, 8, 7, 6, 5, 4], [9, 7, 5, 3, 1, 2])
    ),
    *([*TWELVE, *tail] for tail in ([41], [42, 43])),
    *([*SIXTEEN, *tail] for tail in ([51], [52, 53, 54])),
    *(torch.arange(60, 60 + length).tolist() for length in (3, 11, 12, 13, 14, 25)),
]


def with_border(family="phi3", **settings):
    """A tiny model of longrope; transformers writes into the factors it is given."""
    settings = {"original_max_position_embeddings": BORDER, **settings}
    return tiny(family, **{"rope_parameters": {**ROPE}, **settings})


@pytest.fixture
def phi3():
    return with_border()


def alone(read):
    """Each prompt as the only one in a pass."""
    return torch.cat([read.residuals(torch.tensor([ids])) for ids in PROMPTS])


@pytest.mark.parametrize("batch_tokens", [8, 40, 500])
def test_prompts_on_both_sides_read_as_they_do_alone(phi3, batch_tokens):
    read = model.LensModel(phi3)
    assert read.border == BORDER
    found = extract.read(read, PROMPTS, batch_tokens)["residuals"]
    torch.testing.assert_close(found, alone(read), atol=5e-5, rtol=1e-4)
    plan = extract.plan(PROMPTS, 500, read.takes_tails, BORDER)
    assert {batch.shared for batch in plan} == {0, 7, 10, 12, 16}


def test_without_the_border_prompts_disturb_each_other(phi3):
    """So that the test above cannot pass by chance; padded, and behind shared beginnings."""
    read = model.LensModel(phi3)
    read.border = None
    wrong = extract.read(read, PROMPTS, 500)["residuals"] - alone(read)
    assert (wrong.abs().amax((1, 2)) > 0.3).sum() >= 4
    read.takes_masked_pass = False
    wrong = extract.read(read, PROMPTS, 500)["residuals"] - alone(read)
    assert (wrong.abs().amax((1, 2)) > 0.3).sum() >= 4


@given(
    st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=12),
    st.integers(1, 20),
    st.integers(1, 12),
)
def test_no_pass_of_a_plan_crosses_the_border(prompts, budget, border):
    plan = extract.plan(prompts, budget, lambda tokens: True, border)
    assert sorted(row for batch in plan for row in batch.rows) == list(range(len(prompts)))
    for batch in plan:
        lengths = [len(prompts[row]) for row in batch.rows]
        assert max(lengths) <= border or min(lengths) > border
        # the beginning runs with one more token
        assert not batch.shared or (batch.shared + 1 > border) == (max(lengths) > border)


@pytest.mark.parametrize("tokens", [BORDER - 1, BORDER, BORDER + 1, BORDER + 2])
def test_a_cached_prompt_is_steered_on_its_own_side(phi3, tokens):
    read = model.LensModel(phi3)
    ids = torch.arange(30, 30 + tokens)
    prefix = read.prefix(ids)
    torch.testing.assert_close(prefix.residuals, read.residuals(ids[None])[0])
    added = torch.randn(3, read.width, generator=torch.Generator().manual_seed(0))

    def add(module, args, output, by):
        output[:, -1] += by

    expected = []
    for by in added:
        handle = read.blocks[1].register_forward_hook(
            lambda module, args, output, by=by: add(module, args, output, by)
        )
        expected.append(read.residuals(ids[None])[0, -1])
        handle.remove()
    for way in (read.masked_pass, read.batched_pass):
        found = way(prefix, 2, prefix.residuals[2] + added)
        torch.testing.assert_close(found, torch.stack(expected), atol=5e-5, rtol=1e-4)


def test_a_windowed_cache_that_ends_at_the_border_is_refused():
    """Its tokens run without the answer token, so with the other factors."""
    read = model.LensModel(with_border(sliding_window=6))
    for tokens in (BORDER, BORDER + 2):
        ids = torch.arange(30, 30 + tokens)
        torch.testing.assert_close(read.prefix(ids).residuals, read.residuals(ids[None])[0])
    with pytest.raises(InputError, match="a prompt of 13 tokens cannot be steered"):
        read.prefix(torch.arange(30, 30 + BORDER + 1))


def test_where_there_is_no_border():
    assert model.LensModel(tiny("llama")).border is None
    assert model.LensModel(tiny("gemma3_text", head_dim=8)).border is None
    same = {**ROPE, "short_factor": FACTORS["long_factor"]}
    assert model.LensModel(with_border(rope_parameters=same)).border is None
    own = {**ROPE, "original_max_position_embeddings": 9}
    assert architecture.rope_border(tiny("llama", rope_parameters=own).config) == 9
