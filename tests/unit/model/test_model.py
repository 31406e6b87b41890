"""The lens against the model itself and against hooks written here from scratch."""

import copy
import json
import sys

import numpy as np
import pytest
import torch
import transformers
from families import BATCHED, WINDOWED, blocks_of, tiny
from hypothesis import given
from hypothesis import strategies as st
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from layercal import InputError, model
from layercal.model import extract, fetched, lens
from layercal.model.architecture import hook


def naive_residuals(causal, ids, family="llama"):
    """Every block's input and output at the last token, by one hook a block."""
    found = {}
    layers = blocks_of(causal, family)

    def keep(i, args, kwargs, output):
        entered = args[0] if args else kwargs["hidden_states"]
        left = output[0] if isinstance(output, tuple) else output
        found[i] = entered[0, -1], left[0, -1]

    handles = [
        layer.register_forward_hook(
            lambda m, args, kwargs, out, i=i: keep(i, args, kwargs, out), with_kwargs=True
        )
        for i, layer in enumerate(layers)
    ]
    with torch.no_grad():
        logits = causal(torch.tensor([ids])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return torch.stack([found[0][0], *(found[i][1] for i in range(len(layers)))]), logits


PROMPTS = [[5, 9, 2, 77, 31, 8], [1, 2, 3], [60, 61, 62, 63, 64, 65, 66, 67, 68, 69]]


def test_residuals_and_lens_of_every_family(family):
    """Residuals equal an independent hook, the lens at L the model's own logits."""
    causal = tiny(family)
    read = model.LensModel(causal)
    options = torch.tensor([11, 23, 5, 90])
    for ids in PROMPTS:
        expected, logits = naive_residuals(causal, ids, family)
        h = read.residuals(torch.tensor([ids]))[0]
        torch.testing.assert_close(h, expected)
        torch.testing.assert_close(read.unembed(h[-1]), logits, atol=1e-5, rtol=1e-5)
        assert (read.unembed(h[-2]) - logits).abs().max() > 1e-2
        torch.testing.assert_close(
            read.option_logits(h, options), read.unembed(h)[:, options], atol=1e-5, rtol=1e-5
        )
    assert read.check_gate(torch.tensor(PROMPTS[0])) <= 1e-4


def test_bfloat16_takes_the_pass_that_float32_takes(family):
    read = model.LensModel(tiny(family).to(torch.bfloat16))
    assert read.takes_masked_pass == (family not in BATCHED)


def test_chaos_of_one_token_does_not_decide_over_the_pass(tiny_model, monkeypatch):
    read = model.LensModel(tiny_model)
    masked = read.masked_pass

    def one_astray(prefix, layer, h):
        found = masked(prefix, layer, h)
        found[3] += 1
        return found

    monkeypatch.setattr(read, "masked_pass", one_astray)
    assert read.takes_masked_pass


def test_hidden_states_of_transformers_are_normed_at_the_end(tiny_model):
    """The trap that the hooks avoid: the last hidden state is not the residual stream."""
    ids = torch.tensor([PROMPTS[0]])
    hidden = tiny_model(ids, output_hidden_states=True).hidden_states
    h = model.LensModel(tiny_model).residuals(ids)[0]
    torch.testing.assert_close(h[-2], hidden[-2][0, -1])
    assert (h[-1] - hidden[-1][0, -1]).abs().max() > 0.1


@pytest.mark.parametrize("side", ["left", "right"])
def test_batched_equals_single_with_padding_on_either_side(family, side):
    read = model.LensModel(tiny(family))
    width = max(map(len, PROMPTS))
    ids, mask = torch.zeros(3, width, dtype=int), torch.zeros(3, width, dtype=int)
    for row, prompt in enumerate(PROMPTS):
        where = slice(width - len(prompt), None) if side == "left" else slice(len(prompt))
        ids[row, where], mask[row, where] = torch.tensor(prompt), 1
    batched = read.residuals(ids, mask)
    for row, prompt in enumerate(PROMPTS):
        single = read.residuals(torch.tensor([prompt]))[0]
        torch.testing.assert_close(batched[row], single, atol=5e-5, rtol=1e-4)


def naive_steered(causal, family, ids, layer, vector):
    """Logits of one full pass in which the output of block ``layer`` is moved at the last token."""

    def move(module, args, output):
        (output[0] if isinstance(output, tuple) else output)[0, -1] += vector

    handle = blocks_of(causal, family)[layer - 1].register_forward_hook(move)
    with torch.no_grad():
        logits = causal(torch.tensor([ids])).logits[0, -1]
    handle.remove()
    return logits


@pytest.mark.parametrize("ids", PROMPTS, ids=len)
def test_continued_passes_equal_full_passes_in_every_family(family, ids):
    """On prompts shorter and longer than the sliding windows of those that have one."""
    causal = tiny(family)
    read = model.LensModel(causal)
    prefix = read.prefix(torch.tensor(ids))
    torch.testing.assert_close(
        prefix.residuals, read.residuals(torch.tensor([ids]))[0], atol=5e-5, rtol=1e-4
    )
    vectors = torch.randn(9, read.width, generator=torch.Generator().manual_seed(1))
    assert read.takes_masked_pass == (family not in BATCHED)
    for layer in (1, 3, 5):
        expected = [naive_steered(causal, family, ids, layer, vector) for vector in vectors]
        changed = prefix.residuals[layer] + vectors
        ways = [read.continue_from]
        if layer < read.n_layers:
            ways.append(lambda *setting: read.batched_pass(*setting, rows=4))
        for way in ways:
            found = read.unembed(way(prefix, layer, changed))
            torch.testing.assert_close(found, torch.stack(expected), atol=2e-4, rtol=1e-3)


def naive_everywhere(causal, family, ids, layer, vector):
    """Logits of one full pass in which what block ``layer`` gives, or enters the first, is moved.

    At every position; and the changed stream itself.
    """
    moved = []

    def move(hidden):
        moved.append(hidden + vector)
        return moved[0]

    def entering(module, args, kwargs):
        if args:
            return (move(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": move(kwargs["hidden_states"])}

    def leaving(module, args, output):
        if isinstance(output, tuple):
            return (move(output[0]), *output[1:])
        return move(output)

    blocks = blocks_of(causal, family)
    if layer == 0:
        handle = blocks[0].register_forward_pre_hook(entering, with_kwargs=True)
    else:
        handle = blocks[layer - 1].register_forward_hook(leaving)
    with torch.no_grad():
        logits = causal(torch.tensor([ids])).logits[0, -1]
    handle.remove()
    return logits, moved[0][0]


@pytest.mark.parametrize("ids", PROMPTS, ids=len)
def test_streams_changed_everywhere_equal_full_passes_in_every_family(family, ids):
    """On prompts shorter and longer than the sliding windows of those that have one."""
    causal = tiny(family)
    read = model.LensModel(causal)
    layers = [3, 0, 1, 5]
    streams = read.streams(torch.tensor(ids), layers)
    vectors = torch.randn(4, read.width, generator=torch.Generator().manual_seed(1))
    for layer, stream in zip(layers, streams, strict=True):
        changed = stream + vectors[:, None]
        found = read.unembed(read.continue_all(torch.tensor(ids), layer, changed))
        for row, vector in enumerate(vectors):
            logits, moved = naive_everywhere(causal, family, ids, layer, vector)
            torch.testing.assert_close(changed[row], moved, atol=5e-5, rtol=1e-4)
            torch.testing.assert_close(found[row], logits, atol=2e-4, rtol=1e-3)


def test_extraction_keeps_the_order_of_the_prompts(tiny_model):
    read = model.LensModel(tiny_model)
    found = extract.read(read, PROMPTS, batch_tokens=12)
    assert found["rows"].tolist() == [0, 1, 2]
    together = found["residuals"]
    for row, prompt in enumerate(PROMPTS):
        expected, _ = naive_residuals(tiny_model, prompt)
        torch.testing.assert_close(together[row], expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [3, 8])
def test_a_shared_beginning_changes_nothing_in_any_family(family, length):
    """Prompts that begin alike, in one pass or several, beside prompts that do not.

    The shorter ones fit into all sliding windows, the longer ones do not.
    """
    read = model.LensModel(tiny(family))
    beginning = [3, 14, 15, 92, 65, 35, 89, 79][:length]
    alike = [[*beginning, *tail] for tail in ([5, 6], [5, 8], [9], [5])]
    prompts = [PROMPTS[0], *alike[:3], PROMPTS[1], *alike[3:]]
    plan = extract.plan(prompts, 5, read.takes_tails)
    shared = family not in BATCHED and (length == 3 or family not in WINDOWED)
    assert max(batch.shared for batch in plan) == length * shared
    assert sum(batch.shared > 0 for batch in plan) == 2 * shared
    found = extract.read(read, prompts, batch_tokens=5)
    alone = [extract.read(read, [prompt]) for prompt in prompts]
    for name in set(found) & {"residuals", "neurons"}:
        expected = torch.cat([one[name] for one in alone])
        torch.testing.assert_close(found[name], expected, atol=5e-5, rtol=1e-4)
    assert set(found) == set(alone[0])
    if "written" in found:
        expected = sum(one["written"] for one in alone)
        torch.testing.assert_close(found["written"], expected, atol=5e-4, rtol=1e-4)


# attention and MLP read the same stream
PARALLEL = {"codegen", "cohere", "cohere2", "falcon", "falcon-alibi", "gpt_neox", "gptj", "phi"}


def test_the_middle_of_a_block_is_its_output_without_its_mlp(family):
    """In every family: the MLP gives nothing in a plain pass, and the block's output is read."""
    causal = tiny(family)
    read = model.LensModel(causal)
    options = torch.tensor([5, 9, 11])
    found = extract.read(read, PROMPTS, batch_tokens=12, option_ids=options)
    if "written" not in found:
        assert "mid_logits" not in found
        return
    assert ("mid_logits" in found) == (family not in PARALLEL)
    for number, (block, parts) in enumerate(zip(read.blocks, read.parts, strict=True)):
        for row, prompt in enumerate(PROMPTS):
            seen = []
            with (
                hook(parts.mlp, torch.zeros_like),
                hook(block, lambda hidden, seen=seen: seen.append(hidden[0, -1].clone())),
                torch.inference_mode(),
            ):
                causal(torch.tensor([prompt]), use_cache=False)
            if "mid_logits" in found:
                expected = read.unembed(seen[0])[options]
                torch.testing.assert_close(
                    found["mid_logits"][row, number], expected, atol=2e-4, rtol=1e-3
                )


@pytest.mark.parametrize("shards", [1, 2, 3, 8])
def test_no_bit_depends_on_the_number_of_shards(tiny_model, shards):
    """More shards than batches, too: some are empty then."""
    read = model.LensModel(tiny_model)
    drawn = np.random.default_rng(0)
    prompts = [drawn.integers(0, 96, size=drawn.integers(1, 12)).tolist() for _ in range(40)]
    prompts[5:9] = [[*prompts[4], *prompts[4], one] for one in range(4)]  # share a beginning
    whole = extract.read(read, prompts, batch_tokens=60)
    parts = [extract.read(read, prompts, 60, shard, shards) for shard in range(shards)]
    rows = torch.cat([one["rows"] for one in parts])
    assert sorted(rows.tolist()) == list(range(40))
    assert all(torch.equal(one["rows"], one["rows"].sort().values) for one in parts)
    filled = [one for one in parts if len(one["rows"])]
    assert (len(filled) < shards) == (shards == 8)
    for name in ("residuals", "neurons"):
        assert torch.equal(torch.cat([one[name] for one in filled]), whole[name][rows])
    mean = sum(one["written"] for one in filled).float()
    assert torch.equal(mean, whole["written"].float())
    for one in parts:
        assert one["residuals"].shape == (len(one["rows"]), read.n_layers + 1, read.width)


def test_shards_are_of_about_as_many_prompts_and_tokens(tiny_model):
    """A beginning that prompts share is computed in few of them."""
    read = model.LensModel(tiny_model)
    drawn = np.random.default_rng(0)
    alone = [drawn.integers(0, 96, size=drawn.integers(1, 12)).tolist() for _ in range(400)]
    parts = [extract.read(read, alone, 24, shard, 4)["rows"].tolist() for shard in range(4)]
    assert max(map(len, parts)) - min(map(len, parts)) < 20
    tokens = [sum(len(alone[row]) for row in rows) for rows in parts]
    assert max(tokens) < 1.1 * min(tokens)
    subjects = drawn.integers(0, 96, size=(8, 20)).tolist()
    alike = [[*subject, *one] for subject in subjects for one in ([a, a + 1] for a in range(50))]
    parts = [extract.read(read, alike, 24, shard, 4)["rows"].tolist() for shard in range(4)]
    assert [len({row // 50 for row in rows}) for rows in parts] == [2] * 4


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=12),
    st.integers(1, 20),
    st.booleans(),
)
def test_a_plan_holds_every_prompt_once_within_the_budget(prompts, budget, shares):
    plan = extract.plan(prompts, budget, lambda tokens: shares)
    assert sorted(row for batch in plan for row in batch.rows) == list(range(len(prompts)))
    for batch in plan:
        together = [prompts[row] for row in batch.rows]
        longest = max(map(len, together))
        if batch.shared:
            assert shares and 2 * batch.shared >= longest
            assert all(len(one) > batch.shared for one in together)
            assert len({tuple(one[: batch.shared]) for one in together}) == 1
            tokens = sum(len(one) - batch.shared for one in together)
        else:
            tokens = len(together) * longest
        assert len(together) == 1 or tokens <= budget


def test_length_batches_cover_all_rows_within_the_budget():
    lengths = [3, 50, 7, 7, 12, 1, 30]
    batches = list(extract.length_batches(lengths, 40))
    assert sorted(row for batch in batches for row in batch) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 40


def test_lens_quantities_equal_their_definitions(tiny_model):
    read = model.LensModel(tiny_model)
    h = extract.read(read, PROMPTS)["residuals"]
    options = torch.tensor([11, 23, 5, 90])
    found = lens.read(read, h, options, chunk=4)
    for row in range(3):
        for layer in range(h.shape[1]):
            logits = read.unembed(h[row, layer])
            p = logits.double().softmax(-1)
            torch.testing.assert_close(found["logits"][row, layer], logits[options])
            assert found["option_mass"][row, layer].item() == pytest.approx(
                p[options].sum().item(), rel=1e-4, abs=1e-7
            )
            assert found["entropy"][row, layer].item() == pytest.approx(
                -(p * p.log()).sum().item(), rel=1e-4, abs=1e-5
            )
    torch.testing.assert_close(
        read.option_logits(h, options), found["logits"], atol=1e-5, rtol=1e-5
    )


def test_gate_passes_an_honest_model_and_stops_a_misread_one(tiny_model):
    read = model.LensModel(tiny_model)
    ids = torch.tensor(PROMPTS[0])
    assert read.check_gate(ids) <= 1e-4
    read.readout.after[0] = copy.deepcopy(read.readout.after[0])
    read.readout.after[0].weight.data.mul_(1.5)
    with pytest.raises(InputError, match="differs from the model's own logits"):
        read.check_gate(ids)


def test_gate_stops_nan(tiny_model):
    tiny_model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(InputError, match="own logits hold NaN"):
        model.LensModel(tiny_model).check_gate(torch.tensor(PROMPTS[0]))


def test_nan_in_residuals_is_one_clear_error(tiny_model):
    tiny_model.model.layers[2].mlp.down_proj.weight.data[0] = float("inf")
    with pytest.raises(InputError, match=r"NaN or Inf: prompt \d+, first at layer 3"):
        extract.read(model.LensModel(tiny_model), PROMPTS)


OTHERS = {
    "mamba": ({}, "a recurrent model"),
    "lfm2": (
        {"layer_types": ["conv", "full_attention"], "num_key_value_heads": 2},
        r"a recurrent model \(conv blocks\)",
    ),
    "t5": ({"d_model": 32, "d_ff": 48, "d_kv": 8}, "an encoder-decoder model"),
    "bart": (
        {"encoder_layers": 2, "decoder_layers": 3},
        r"one stack of 2 blocks .* found BartDecoder\.layers of 3",
    ),
    "bert": ({"is_decoder": True}, "one stack of 2 blocks .* in BertModel or beside it, found no "),
    "modernbert-decoder": ({"pad_token_id": 0}, r"transforms the stream once more \(a prediction"),
    "openai-gpt": ({}, "no final norm after its last block"),
    "gemma3n_text": (
        {
            "vocab_size_per_layer_input": 97,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 0,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "layer_types": ["full_attention"] * 2,
            "activation_sparsity_pattern": [0.0] * 2,
        },
        "no single residual stream",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_models_of_another_shape_are_one_clear_error(kind):
    settings, message = OTHERS[kind]
    small = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48}
    config = CONFIG_MAPPING[kind](
        **(small | {"num_hidden_layers": 2, "num_attention_heads": 4} | settings)
    )
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    with pytest.raises(InputError, match=message):
        model.LensModel(auto.from_config(config))


def test_model_without_a_head_is_one_clear_error():
    config = CONFIG_MAPPING["llama"](
        num_hidden_layers=1,
        hidden_size=8,
        vocab_size=9,
        num_attention_heads=1,
        num_key_value_heads=1,
        intermediate_size=8,
    )
    with pytest.raises(InputError, match="no language model head"):
        model.LensModel(transformers.AutoModel.from_config(config))


def test_load_round_trip_and_missing_folder(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    read = model.load(tmp_path, "float32", "cpu")
    assert (read.n_layers, read.width, read.dtype) == (5, 32, torch.float32)
    with pytest.raises(InputError, match="no causal language model"):
        model.load(tmp_path / "nowhere", "float32", "cpu")


@pytest.mark.parametrize(("quantize", "error"), [("8bit", 0.1), ("4bit", 0.7)])
def test_quantized_blocks_under_a_dense_head(tmp_path, quantize, error):
    tiny("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    ids = torch.tensor(PROMPTS[0])
    dense = model.load(tmp_path, "float32", "cpu").residuals(ids[None])[0]
    read = model.load(tmp_path, "float32", "cpu", quantize)
    assert type(read.head) is torch.nn.Linear
    assert read.check_gate(ids) <= 1e-4
    difference = (read.residuals(ids[None])[0] - dense).norm() / dense.norm()
    assert 1e-4 < difference < error


@pytest.mark.parametrize("asked", ["8bit", "none"])
def test_what_an_entry_says_of_quantizing_wins(tmp_path, asked):
    tiny("llama", hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"files": {}, "source": {"quantize": asked}}))
    read = fetched.load_fetched(manifest, "float32", "cpu", "none" if asked == "8bit" else "4bit")
    assert getattr(read.model.config, "quantization_config", None) is None or asked == "8bit"
    assert (type(read.blocks[0].mlp.down_proj) is torch.nn.Linear) == (asked == "none")


def test_quantizing_without_its_package_is_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(InputError, match="4bit needs the package bitsandbytes"):
        model.load(tmp_path, "float32", "cpu", "4bit")


def test_final_norm_is_found_and_frozen_in_every_family(family):
    read = model.LensModel(tiny(family))
    gain, bias, centred = read.norm_map
    h = 3 * torch.randn(5, read.width, generator=torch.Generator().manual_seed(1))
    rebuilt = h - h.mean(-1, keepdim=True) if centred else h
    rebuilt = rebuilt / rebuilt.pow(2).mean(-1, keepdim=True).sqrt() * gain + bias
    torch.testing.assert_close(read.readout.after[0](h), rebuilt, atol=1e-3, rtol=0)
    option_ids = torch.arange(4)
    live = read.option_logits(h, option_ids)
    torch.testing.assert_close(read.option_logits(h, option_ids, h), live, atol=1e-5, rtol=0)
    # the live norm does not see a vector grow; frozen at the shorter one, it does
    torch.testing.assert_close(read.option_logits(2 * h, option_ids), live, atol=1e-3, rtol=0)
    assert (read.option_logits(2 * h, option_ids, h) - live).abs().max() > 0.1
    torch.testing.assert_close(read.option_logits(h, option_ids), live, atol=0, rtol=0)


def test_frozen_norm_equals_a_norm_written_out(tiny_model):
    read, option_ids = model.LensModel(tiny_model), torch.tensor([5, 3])
    h, before = torch.randn(2, 6, read.width, generator=torch.Generator().manual_seed(1))
    scale = (before.pow(2).mean(-1, keepdim=True) + tiny_model.config.rms_norm_eps).sqrt()
    expected = h / scale * tiny_model.model.norm.weight @ tiny_model.lm_head.weight[option_ids].T
    found = read.option_logits(h, option_ids, frozen_at=before)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
