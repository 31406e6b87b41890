"""Mean ablation of each block's parts against full passes with plain hooks."""

from functools import partial

import pytest
import torch
from families import BATCHED, blocks_of, recorded, tiny

from layercal import InputError, model
from layercal.ablation import blocks
from layercal.model import extract

PROMPTS = [[5, 9, 2, 77, 31, 8], [1, 2, 3], [60, 61, 62, 63, 64, 65, 66, 67, 68, 69]]
ATTENTIONS = ["self_attn", "self_attention", "attn", "attention"]
MLPS = ["mlp", "fc2", "feed_forward"]
NORMED = ["post_attention_layernorm", "post_feedforward_layernorm"]
# family -> what its attention and MLP end with, where that is not a child of those names
WRITERS = {
    "bloom": ["self_attention.dense", "mlp.dense_4h_to_h"],
    "exaone4": NORMED,
    "gemma2": NORMED,
    "gemma3_text": NORMED,
    "glm4": ["post_self_attn_layernorm", "post_mlp_layernorm"],
    "mpt": ["attn", "ffn.down_proj"],
    "olmo2": NORMED,
    "olmo3": NORMED,
}


def writers(causal, family):
    """Attention and MLP of every block, by the names written down here."""
    found = []
    for block in blocks_of(causal, family):
        modules = dict(block.named_modules())
        names = WRITERS.get(family) or [
            next(name for name in names if name in modules) for names in (ATTENTIONS, MLPS)
        ]
        found.append([modules[name] for name in names])
    return found


def hooked_pass(causal, ids, module, act):
    """Logits of one full pass in which ``act`` changes or sees a module's output (tokens, d)."""

    def leaving(module, args, output):
        hidden = output if isinstance(output, torch.Tensor) else output[0]
        flat = hidden.clone().reshape(len(ids), -1)
        act(flat)
        flat = flat.reshape(hidden.shape)
        return flat if isinstance(output, torch.Tensor) else (flat, *output[1:])

    handle = module.register_forward_hook(leaving)
    with torch.no_grad():
        logits = causal(torch.tensor([ids])).logits[0, -1]
    handle.remove()
    return logits


def naive_written(causal, family, ids):
    seen = []
    for parts in writers(causal, family):
        for module in parts:
            hooked_pass(causal, ids, module, lambda flat: seen.append(flat[-1].clone()))
    return torch.stack(seen).reshape(-1, 2, 32)


def naive_neurons(causal, projection, ids):
    """What goes into the last block's second half, in one plain pass, at the last token."""
    seen = []
    handle = projection.register_forward_pre_hook(
        lambda module, args: seen.append(args[0].reshape(len(ids), -1)[-1].clone())
    )
    with torch.no_grad():
        causal(torch.tensor([ids]))
    handle.remove()
    return seen[0]


def written(read, ids):
    """What is recorded of one prompt; (L, 2, d)."""
    return recorded(read, torch.tensor([ids]))[1]["written"][0]


def close(found, expected, tolerance=1e-4):
    """Equal relative to the scale of what is expected."""
    scale = expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("ids", PROMPTS[::2], ids=len)
def test_ablations_equal_full_passes_in_every_family(family, ids):
    """On prompts shorter and longer than the sliding windows of those that have one."""
    causal = tiny(family)
    read = model.LensModel(causal)
    assert [[p.attention, p.mlp] for p in read.parts] == writers(causal, family)
    prefix = read.prefix(torch.tensor(ids))
    own = written(read, ids)
    close(own, naive_written(causal, family, ids))
    means = torch.stack([written(read, other) for other in PROMPTS]).mean(0)
    assert (read.pass_of(prefix) == read.masked_pass) == (
        family not in BATCHED and prefix.in_window
    )
    untouched = read.unembed(prefix.residuals[-1])
    for lowest in (1, 4):
        found = blocks.without_parts(read, prefix, lowest, means[lowest - 1 :])
        assert found.shape == (6 - lowest, 2, 32)
        for block, parts in enumerate(writers(causal, family)[lowest - 1 :]):
            for part, module in enumerate(parts):
                mean = means[lowest - 1 + block, part]
                expected = hooked_pass(
                    causal, ids, module, lambda flat, mean=mean: flat[-1].copy_(mean)
                )
                close(read.unembed(found[block, part]), expected)
                assert (expected - untouched).abs().max() > 1e-2
    # given what it gives anyway, no part changes anything
    same = blocks.without_parts(read, prefix, 1, own)
    close(same, prefix.residuals[-1].expand(same.shape))


@pytest.mark.parametrize("family", ["llama", "opt", "bloom", "gpt_oss"])
def test_rows_of_a_batch_give_the_same_numbers_however_they_are_split(family):
    read = model.LensModel(tiny(family))
    prefix = read.prefix(torch.tensor(PROMPTS[1]))
    means = torch.randn(5, 2, 32, generator=torch.Generator().manual_seed(1))
    expected = blocks.without_parts(read, prefix, 1, means)
    for rows in (1, 3, 10):
        read.pass_of = lambda prefix, rows=rows: partial(read.batched_pass, rows=rows)
        close(blocks.without_parts(read, prefix, 1, means), expected)


def test_parts_are_the_same_in_bfloat16(family):
    causal = tiny(family).bfloat16()
    parts = model.LensModel(causal).parts
    assert [[p.attention, p.mlp] for p in parts] == writers(causal, family)
    scale = {"granite": 0.7}.get(family, 1.0)
    assert [p.scale for p in parts] == pytest.approx([scale] * 5, rel=1e-2)


def test_block_without_an_attention_is_one_clear_error():
    causal = tiny("llama")
    attention = causal.model.layers[2].self_attn
    attention.__class__ = type("Mixer", (type(attention),), {})
    read = model.LensModel(causal)
    prefix = read.prefix(torch.tensor([1, 2, 3]))
    with pytest.raises(InputError, match="LlamaDecoderLayer: expected one attention and an MLP"):
        blocks.without_parts(read, prefix, 1, torch.zeros(5, 2, 32))
    assert not recorded(read, torch.tensor([[1, 2, 3]]))[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_block_that_does_more_than_add_its_parts_is_one_clear_error(dtype):
    causal = tiny("llama").to(dtype)
    causal.model.layers[2].register_forward_hook(lambda module, args, output: output * 1.2)
    read = model.LensModel(causal)
    with pytest.raises(InputError, match="not the sum of what its LlamaAttention and its LlamaMLP"):
        read.parts  # noqa: B018


def test_blocks_and_means_that_do_not_fit_are_one_clear_error():
    read = model.LensModel(tiny("llama"))
    prefix = read.prefix(torch.tensor([1, 2, 3]))
    for lowest in (0, 6):
        with pytest.raises(InputError, match="expected a block from 1 to 5"):
            blocks.without_parts(read, prefix, lowest, torch.zeros(5, 2, 32))
    with pytest.raises(InputError, match=r"expected shape \(2, 2, 32\) for blocks 4 to 5"):
        blocks.without_parts(read, prefix, 4, torch.zeros(5, 2, 32))


def test_hooks_are_gone_after_a_run_that_fails(monkeypatch):
    read = model.LensModel(tiny("llama"))
    prefix = read.prefix(torch.tensor([1, 2, 3]))
    means = written(read, [1, 2, 3])
    monkeypatch.setattr(read, "_decode", lambda *args, **inputs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        blocks.without_parts(read, prefix, 1, means + 1)
    monkeypatch.undo()
    close(written(read, [1, 2, 3]), means, 1e-6)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in read.model.modules())


def test_extraction_records_what_single_prompts_write(family):
    """In padded batches, at the last real token; the neurons are those of the last block."""
    causal = tiny(family)
    read = model.LensModel(causal)
    found = extract.read(read, PROMPTS, batch_tokens=12)
    try:
        projection = read.parts[-1].projection
    except InputError:
        assert set(found) == {"rows", "residuals"}
        return
    expected = sum(naive_written(causal, family, ids) for ids in PROMPTS)
    torch.testing.assert_close(found["written"].float(), expected, atol=1e-3, rtol=1e-3)
    if projection is None:
        assert "neurons" not in found
        return
    active = torch.stack([naive_neurons(causal, projection, ids) for ids in PROMPTS])
    torch.testing.assert_close(found["neurons"], active, atol=1e-3, rtol=1e-3)


def test_parts_are_told_beside_a_stream_that_is_all_rounding():
    """The first token of many models is so large that bfloat16 loses what a block adds to it."""
    causal = tiny("qwen2").to(torch.bfloat16)
    with torch.no_grad():
        causal.model.embed_tokens.weight[1] *= 3e4  # the first token of the run that finds them
    read = model.LensModel(causal)
    assert read.residuals(torch.arange(1, 5)[None])[0, 0].norm() < 1e3  # the last one is as ever
    assert [parts.scale for parts in read.parts] == [1] * read.n_layers
