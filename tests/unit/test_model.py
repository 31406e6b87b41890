"""The lens against the model itself and against hooks written here from scratch."""

import pytest
import torch
from conftest import tiny
from transformers import GPT2Config, GPT2LMHeadModel

from layercal import InputError, extract, lens, model


def naive_residuals(causal, ids):
    """Every block's input and output at the last token, by one hook a block."""
    found = {}
    layers = causal.model.layers
    handles = [
        layer.register_forward_hook(
            lambda m, args, out, i=i: found.__setitem__(i, (args[0][0, -1], out[0, -1]))
        )
        for i, layer in enumerate(layers)
    ]
    with torch.no_grad():
        logits = causal(torch.tensor([ids])).logits[0, -1]
    for handle in handles:
        handle.remove()
    return torch.stack([found[0][0], *(found[i][1] for i in range(len(layers)))]), logits


PROMPTS = [[5, 9, 2, 77, 31, 8], [1, 2, 3], [60, 61, 62, 63, 64, 65, 66, 67, 68, 69]]


def test_residuals_equal_an_independent_hook(tiny_model):
    read = model.LensModel(tiny_model)
    for ids in PROMPTS:
        expected, _ = naive_residuals(tiny_model, ids)
        torch.testing.assert_close(read.residuals(torch.tensor([ids]))[0], expected)


def test_lens_at_last_layer_equals_own_logits(tiny_model):
    read = model.LensModel(tiny_model)
    for ids in PROMPTS:
        _, logits = naive_residuals(tiny_model, ids)
        h = read.residuals(torch.tensor([ids]))[0]
        torch.testing.assert_close(read.unembed(h[-1]), logits, atol=1e-5, rtol=1e-5)
        assert (read.unembed(h[-2]) - logits).abs().max() > 0.1


def test_hidden_states_of_transformers_are_normed_at_the_end(tiny_model):
    """The trap that the hooks avoid: the last hidden state is not the residual stream."""
    ids = torch.tensor([PROMPTS[0]])
    hidden = tiny_model(ids, output_hidden_states=True).hidden_states
    h = model.LensModel(tiny_model).residuals(ids)[0]
    torch.testing.assert_close(h[-2], hidden[-2][0, -1])
    assert (h[-1] - hidden[-1][0, -1]).abs().max() > 0.1


@pytest.mark.parametrize("side", ["left", "right"])
def test_batched_equals_single_with_padding_on_either_side(tiny_model, side):
    read = model.LensModel(tiny_model)
    width = max(map(len, PROMPTS))
    ids, mask = torch.zeros(3, width, dtype=int), torch.zeros(3, width, dtype=int)
    for row, prompt in enumerate(PROMPTS):
        where = slice(width - len(prompt), None) if side == "left" else slice(len(prompt))
        ids[row, where], mask[row, where] = torch.tensor(prompt), 1
    batched = read.residuals(ids, mask)
    for row, prompt in enumerate(PROMPTS):
        single = read.residuals(torch.tensor([prompt]))[0]
        torch.testing.assert_close(batched[row], single, atol=2e-5, rtol=1e-4)


def test_extraction_keeps_the_order_of_the_prompts(tiny_model):
    read = model.LensModel(tiny_model)
    together = extract.residuals(read, PROMPTS, batch_tokens=12)
    for row, prompt in enumerate(PROMPTS):
        expected, _ = naive_residuals(tiny_model, prompt)
        torch.testing.assert_close(together[row], expected, atol=2e-5, rtol=1e-4)


def test_length_batches_cover_all_rows_within_the_budget():
    lengths = [3, 50, 7, 7, 12, 1, 30]
    batches = list(extract.length_batches(lengths, 40))
    assert sorted(row for batch in batches for row in batch) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[row] for row in batch) <= 40


def test_lens_quantities_equal_their_definitions(tiny_model):
    read = model.LensModel(tiny_model)
    h = extract.residuals(read, PROMPTS)
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
    read.norm.weight.data.mul_(1.5)
    with pytest.raises(InputError, match="differs from the model's own logits"):
        read.check_gate(ids)


def test_gate_stops_nan(tiny_model):
    tiny_model.model.norm.weight.data[0] = float("nan")
    with pytest.raises(InputError, match="differs"):
        model.LensModel(tiny_model).check_gate(torch.tensor(PROMPTS[0]))


def test_nan_in_residuals_is_one_clear_error(tiny_model):
    tiny_model.model.layers[2].mlp.down_proj.weight.data[0] = float("inf")
    with pytest.raises(InputError, match="NaN or Inf in rows"):
        extract.residuals(model.LensModel(tiny_model), PROMPTS)


def test_unknown_structure_is_one_clear_error():
    other = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=8, n_layer=2, n_head=2))
    with pytest.raises(InputError, match="no stack of 2 blocks"):
        model.LensModel(other)


def test_load_round_trip_and_missing_folder(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    read = model.load(tmp_path, "float32", "cpu")
    assert (read.n_layers, read.width, read.dtype) == (5, 32, torch.float32)
    with pytest.raises(InputError, match="no causal language model"):
        model.load(tmp_path / "nowhere", "float32", "cpu")
