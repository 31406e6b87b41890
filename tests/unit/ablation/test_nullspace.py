"""Null space and entropy neurons against explicit matrices and full passes with plain hooks."""

import numpy as np
import pandas as pd
import pytest
import torch
from families import blocks_of, recorded, tiny

from layercal import InputError, model
from layercal.ablation import neurons, nullspace
from layercal.results import Residuals

PROMPTS = [[5, 9, 2, 77, 31, 8], [1, 2, 3], [60, 61, 62, 63, 64, 65, 66, 67, 68, 69]]
RULES = ["k=0", "k=1", "k=7", "k=32", "energy=0.5", "energy=0.99"]
EXPERTS = {"gpt_oss", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe"}
# where the second half of the MLP stands in a block
OUTPUTS = ["mlp.down_proj", "mlp.c_proj", "mlp.fc_out", "mlp.dense_4h_to_h", "mlp.fc2", "fc2"]
OUTPUTS += ["ffn.down_proj", "feed_forward.down_proj"]


def close(found, expected, tolerance=1e-4):
    """Equal relative to the scale of what is expected."""
    torch.testing.assert_close(
        found.double(), expected.double(), rtol=0, atol=tolerance * expected.abs().max().item()
    )


def explicit_matrix(causal, family):
    """Head, projection and gain, by the names that the family gives them; (vocabulary, d)."""
    gain = {
        "llama": lambda: causal.model.norm.weight,
        "gemma": lambda: 1 + causal.model.norm.weight,
        "gpt2": lambda: causal.transformer.ln_f.weight,
        "olmo": lambda: torch.ones(32),
        "opt": lambda: causal.model.decoder.final_layer_norm.weight,
    }[family]()
    matrix = causal.lm_head.weight.detach().double()
    if family == "opt":
        matrix = matrix @ causal.model.decoder.project_out.weight.detach().double()
    matrix = matrix * gain.detach().double()
    if family in ("gpt2", "olmo", "opt"):
        matrix = matrix - matrix.mean(1, keepdim=True)
    return matrix - matrix.mean(0)


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "olmo", "opt"])
def test_singular_vectors_equal_those_of_the_explicit_matrix(family):
    causal = tiny(family, vocab_size=9001)  # three chunks
    found = nullspace.effective_unembedding(model.LensModel(causal))
    matrix = explicit_matrix(causal, family)
    _, values, vectors = torch.linalg.svd(matrix, full_matrices=False)
    close(found.singular_values, values, 1e-5)
    for size in (1, 5, 14):
        top = slice(None, size)
        close(found.basis[top].T @ found.basis[top], vectors[top].T @ vectors[top])
    torch.testing.assert_close(found.basis @ found.basis.T, torch.eye(32, dtype=torch.float64))
    # the spaces that no token reads
    unread = {"gpt2": 1, "olmo": 1, "opt": 16}.get(family, 0)
    assert (found.singular_values < 1e-5 * values[0]).sum() == unread
    if unread:
        ones = torch.ones(32) / 32**0.5
        close(nullspace.null_part(ones, found, f"k={unread}"), ones)
        assert (matrix @ found.null_basis(f"k={unread}").T).abs().max() < 1e-4 * values[0]


def test_singular_vectors_equal_the_gradient_of_the_logits_in_every_family(family):
    """Without naming any norm: the derivative of all logits, soft-capping apart."""
    settings = {"final_logit_softcapping": None} if family == "gemma2" else {}
    read = model.LensModel(tiny(family, **settings))
    found = nullspace.effective_unembedding(read)
    h = 3 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    tokens = torch.arange(97)
    slope = torch.autograd.functional.jacobian(lambda x: read.option_logits(x, tokens), h).double()
    slope = slope - slope.mean(0)
    # the norm lets nothing through along the residual, centred where it centres
    centres = (slope @ torch.ones(32).double()).abs().max() < 1e-4 * slope.abs().max()
    h = (h - h.mean() if centres else h).double()
    across = torch.eye(32) - torch.outer(h, h) / h.square().sum()
    gram = found.basis.T @ torch.diag(found.singular_values**2) @ found.basis
    expected, gram = slope.T @ slope, across @ gram @ across
    close(gram / gram.trace(), expected / expected.trace())


@pytest.fixture
def unembedding():
    return nullspace.effective_unembedding(model.LensModel(tiny("llama")))


def test_null_space_sizes_equal_a_count_by_hand(unembedding):
    energy = unembedding.singular_values.square().numpy()
    for share in (1e-9, 0.3, 0.5, 0.9, 0.999, 1 - 1e-12):
        rows, held = 0, 0.0
        while held < share * energy.sum():
            held += energy[rows]
            rows += 1
        assert unembedding.null_size(f"energy={share}") == 32 - rows
    assert [unembedding.null_size(f"k={k}") for k in (0, 5, 32)] == [0, 5, 32]
    assert torch.equal(unembedding.null_basis("k=2"), unembedding.basis[30:])
    assert unembedding.null_basis("k=0").shape == (0, 32)


@pytest.mark.parametrize(
    "rule", ["k=33", "k=-1", "k=1.5", "k", "energy=0", "energy=1", "energy=nan", "rank=3", ""]
)
def test_rule_that_is_none_is_one_clear_error(unembedding, rule):
    with pytest.raises(InputError, match=r"expected k=<0\.\.32> or energy="):
        unembedding.null_size(rule)


def test_parts_of_a_direction_are_its_orthogonal_halves(unembedding):
    direction = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    basis = unembedding.basis[-5:].float()
    inside = torch.stack([sum((v @ row) * row for row in basis) for v in direction])
    null = nullspace.null_part(direction, unembedding, "k=5")
    row = nullspace.row_part(direction, unembedding, "k=5")
    close(null, inside / inside.norm(dim=1, keepdim=True))
    close(row, (direction - inside) / (direction - inside).norm(dim=1, keepdim=True))
    assert null.dtype == row.dtype == torch.float32
    close(nullspace.null_part(1000 * direction[0], unembedding, "k=5"), null[0])


def test_direction_without_such_a_part_is_one_clear_error(unembedding):
    direction = torch.randn(32, generator=torch.Generator().manual_seed(2))
    row = nullspace.row_part(direction, unembedding, "k=5")
    null = nullspace.null_part(direction, unembedding, "k=5")
    for part, vector, rule in [
        (nullspace.null_part, row, "k=5"),
        (nullspace.row_part, null, "k=5"),
        (nullspace.null_part, direction, "k=0"),
        (nullspace.row_part, direction, "k=32"),
        (nullspace.null_part, torch.zeros(32), "k=5"),
        (nullspace.null_part, torch.stack([direction, row]), "k=5"),
    ]:
        with pytest.raises(InputError, match=r"no part in the (null|row) space \(k="):
            part(vector, unembedding, rule)


def test_shares_equal_a_projection_written_out(unembedding):
    residuals = torch.randn(6, 4, 32, generator=torch.Generator().manual_seed(3)).bfloat16()
    table = nullspace.null_shares(residuals, unembedding, RULES)
    h = residuals.double().numpy()
    basis = unembedding.basis.numpy()
    for row in table.to_dict("records"):
        size = unembedding.null_size(row["rule"])
        layer = row["layer"]
        x = h[:, layer] if row["what"] == "residual" else h[:, layer] - h[:, layer - 1]
        null = basis[32 - size :]
        shares = [np.square(null @ v).sum() / np.square(v).sum() for v in x]
        assert row["share"] == pytest.approx(np.mean(shares), abs=1e-5)
        assert (row["size"], row["chance"]) == (size, size / 32)
    sharded = Residuals(residuals.split([1, 5]), torch.arange(6))
    pd.testing.assert_frame_equal(nullspace.null_shares(sharded, unembedding, RULES), table)
    layers = table.groupby("what")["layer"].agg(lambda x: sorted(set(x)))
    assert layers["residual"] == [0, 1, 2, 3]
    assert layers["update"] == [1, 2, 3]
    assert len(table) == 7 * len(RULES)
    assert set(table.query("rule == 'k=0'")["share"]) == {0.0}
    assert table.query("rule == 'k=32'")["share"].tolist() == pytest.approx([1.0] * 7, abs=1e-5)


def test_share_of_the_zero_vector_is_zero(unembedding):
    residuals = torch.ones(2, 2, 32)
    shares = nullspace.question_shares(residuals, unembedding, ["k=0"])
    assert torch.equal(shares["update"], torch.zeros(2, 1, 1))
    shares = nullspace.question_shares(residuals, unembedding, ["k=3", "k=0"])
    assert torch.equal(shares["update"], torch.zeros(2, 1, 2))
    assert (shares["residual"][..., 0] > 0).all()


def output_layer(causal, family):
    """The second half of the last block's MLP, by the names written down here."""
    block = blocks_of(causal, family)[-1]
    modules = dict(block.named_modules())
    return next(modules[path] for path in OUTPUTS if path in modules)


def activations(read, ids, mask=None):
    """``h[L]`` and the last block's neurons, as extraction records them."""
    h, given = recorded(read, ids, mask)
    return h, given["neurons"]


def naive_activations(causal, family, ids):
    seen = []
    handle = output_layer(causal, family).register_forward_pre_hook(
        lambda module, args: seen.append(args[0].reshape(len(ids), -1)[-1].clone())
    )
    with torch.no_grad():
        causal(torch.tensor([ids]))
    handle.remove()
    return seen[0]


def naive_ablated(causal, family, ids, some, means):
    """Logits of one full pass in which some neurons are at their mean at the last token."""

    def ablate(module, args):
        flat = args[0].clone().reshape(len(ids), -1)
        flat[-1, some] = means[some]
        return (flat.reshape(args[0].shape),)

    handle = output_layer(causal, family).register_forward_pre_hook(ablate)
    with torch.no_grad():
        logits = causal(torch.tensor([ids])).logits[0, -1]
    handle.remove()
    return logits


def test_mean_ablation_equals_full_passes_in_every_family(family):
    causal = tiny(family)
    read = model.LensModel(causal)
    if family in EXPERTS:
        with pytest.raises(InputError, match=r"DecoderLayer: no one linear layer gives"):
            neurons.find_neurons(read)
        return
    found = neurons.find_neurons(read)
    assert found.projection is output_layer(causal, family)
    runs = [activations(read, torch.tensor([ids])) for ids in PROMPTS]
    h, active = (torch.cat(parts) for parts in zip(*runs, strict=True))
    for row, ids in enumerate(PROMPTS):
        close(active[row], naive_activations(causal, family, ids))
    # those that differ most from question to question
    means, chosen = active.mean(0), active.var(0).topk(3).indices.tolist()
    groups = [*([j] for j in chosen), chosen]
    changed = list(neurons.without_neurons(found, h, active, means, groups))
    assert len(changed) == 4
    for row, ids in enumerate(PROMPTS):
        untouched = read.unembed(h[row])
        for some, ablated in zip(groups, changed, strict=True):
            expected = naive_ablated(causal, family, ids, some, means)
            close(read.unembed(ablated[row]), expected)
            close(read.unembed(ablated[row]) - untouched, expected - untouched, 2e-3)


@pytest.mark.parametrize("side", ["left", "right"])
def test_activations_of_a_padded_batch_equal_those_of_each_prompt(side):
    for family in ("llama", "opt"):
        read = model.LensModel(tiny(family))
        ids, mask = torch.zeros(3, 10, dtype=int), torch.zeros(3, 10, dtype=int)
        for row, prompt in enumerate(PROMPTS):
            where = slice(10 - len(prompt), None) if side == "left" else slice(len(prompt))
            ids[row, where], mask[row, where] = torch.tensor(prompt), 1
        h, active = activations(read, ids, mask)
        close(h, read.residuals(ids, mask)[:, -1])
        for row, prompt in enumerate(PROMPTS):
            close(active[row], naive_activations(read.model, family, prompt))


def test_each_question_may_have_its_own_mean():
    read = model.LensModel(tiny("gemma2"))
    found = neurons.find_neurons(read)
    h, active = activations(read, torch.tensor([[1, 2, 3], [4, 5, 6]]))
    means = torch.stack([active[1], active[0]])
    groups = [[5], [6], [5, 6]]
    together = list(neurons.without_neurons(found, h, active, means, groups))
    for row in range(2):
        alone = neurons.without_neurons(
            found, h[row : row + 1], active[row : row + 1], means[row], groups
        )
        for both, one in zip(together, alone, strict=True):
            close(both[row], one[0])


def test_what_is_kept_of_a_group_is_its_own_residuals_alone():
    """A reading of one group must not hold the memory of others, of which there may be hundreds."""
    read = model.LensModel(tiny("llama"))
    found = neurons.find_neurons(read)
    h, active = activations(read, torch.tensor([[1, 2, 3], [4, 5, 6]]))
    for one in neurons.without_neurons(found, h, active, active.mean(0), [[1], [2, 3]]):
        assert one.shape == h.shape and one.untyped_storage().nbytes() == 4 * h.numel()


def final_weights(causal, family):
    """What each neuron writes on the stream, up to one factor, by the names of the family."""
    block = blocks_of(causal, family)[-1]
    if family == "gpt2":
        weight = block.mlp.c_proj.weight
        return weight - weight.mean(1, keepdim=True)
    if family == "olmo2":
        return block.mlp.down_proj.weight.T * block.post_feedforward_layernorm.weight
    return block.mlp.down_proj.weight.T * {"granite": 0.7}.get(family, 1.0)


@pytest.mark.parametrize("family", ["llama", "gpt2", "olmo2", "granite"])
def test_description_of_neurons_equals_its_definition(family):
    causal = tiny(family)
    read = model.LensModel(causal)
    found, unembedding = neurons.find_neurons(read), nullspace.effective_unembedding(read)
    table = neurons.describe(read, found, unembedding, ["k=4", "energy=0.9"])
    matrix = explicit_matrix(causal, "gpt2" if family == "gpt2" else "llama").numpy()
    weights = final_weights(causal, family).detach().double().numpy()
    assert table["neuron"].tolist() == list(range(len(weights)))
    for row, w in zip(table.to_dict("records"), weights, strict=True):
        cosines = matrix @ w / np.linalg.norm(matrix, axis=1) / np.linalg.norm(w)
        assert row["norm"] == pytest.approx(np.linalg.norm(w), rel=1e-4)
        assert row["cosine_variance"] == pytest.approx(cosines.var(), rel=1e-4)
        for rule in ("k=4", "energy=0.9"):
            null = unembedding.null_basis(rule).numpy()
            share = np.square(null @ w).sum() / np.square(w).sum()
            assert row[f"null_share:{rule}"] == pytest.approx(share, abs=1e-5)


def test_entropy_neurons_are_of_high_norm_and_then_of_low_variance():
    table = pd.DataFrame(
        {
            "neuron": range(8),
            "norm": [1.0, 9, 2, 8, 3, 7, 4, 6],
            "cosine_variance": [0.0, 0.5, 0, 0.1, 0, 0.3, 0, 0.2],
        }
    )
    assert neurons.entropy_neurons(table, 2, norm_quantile=0.5) == [3, 7]
    assert neurons.entropy_neurons(table, 9, norm_quantile=0.5) == [3, 7, 5, 1]
    assert neurons.entropy_neurons(table, 9) == [3, 1]
    # controls are drawn from the same ones
    assert neurons.high_norm(table)["neuron"].tolist() == [1, 3]


def plant(causal, neuron, length):
    """Let no token read one direction, and one neuron of the last block write on it alone."""
    gain = causal.model.norm.weight.detach()
    direction = torch.nn.functional.normalize(
        torch.randn(32, generator=torch.Generator().manual_seed(4)), dim=0
    )
    unread = torch.nn.functional.normalize(gain * direction, dim=0)
    head = causal.lm_head.weight.data
    head -= torch.outer(head @ unread, unread)
    causal.model.layers[-1].mlp.down_proj.weight.data[:, neuron] = length * direction
    return direction


def test_planted_neuron_is_found_and_acts_through_the_norm_alone():
    causal = tiny("llama")
    direction = plant(causal, 17, 40.0)
    read = model.LensModel(causal)
    found, unembedding = neurons.find_neurons(read), nullspace.effective_unembedding(read)
    assert abs(unembedding.basis[-1].float() @ direction) > 1 - 1e-5
    table = neurons.describe(read, found, unembedding, ["k=1"])
    chosen = neurons.entropy_neurons(table, 3)
    assert chosen[0] == 17
    assert table["null_share:k=1"][17] == pytest.approx(1, abs=1e-5)
    assert table["null_share:k=1"].drop(17).max() < 0.5
    assert table["cosine_variance"][17] < 1e-8 < 1e-3 < table["cosine_variance"].drop(17).min()

    ids = torch.randint(1, 97, (8, 6), generator=torch.Generator().manual_seed(5))
    h, active = activations(read, ids)
    alone = [[neuron] for neuron in chosen]
    changed = list(neurons.without_neurons(found, h, active, active.mean(0), alone))
    options = torch.tensor([11, 23, 5, 90])
    before = read.option_logits(h, options)
    frozen = read.option_logits(changed[0], options, frozen_at=h)
    close(frozen, before)
    live = read.option_logits(changed[0], options)
    grown = (read.norm_scale(h) / read.norm_scale(changed[0]))[:, None]
    close(live, before * grown)
    assert ((grown - 1).abs() > 0.05).float().mean() > 0.5
    # another neuron moves the logits directly, whatever the norm
    other = read.option_logits(changed[1], options, frozen_at=h)
    assert (other - before).abs().max() > 100 * (frozen - before).abs().max()


def test_neurons_that_do_not_write_their_weights_are_one_clear_error():
    class Bent(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x).tanh()

    causal = tiny("llama")
    causal.model.layers[-1].mlp.down_proj.__class__ = Bent
    with pytest.raises(InputError, match="LlamaDecoderLayer: a pass without every other neuron"):
        neurons.find_neurons(model.LensModel(causal))


def test_quantized_neurons_are_one_clear_error(tmp_path):
    tiny("llama").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="its MLP is quantized"):
        neurons.find_neurons(model.load(tmp_path, "float32", "cpu", "8bit"))


def test_bfloat16_neurons_are_the_same_ones(family):
    if family in EXPERTS:
        pytest.skip("no neurons there")
    causal = tiny(family).bfloat16()
    found = neurons.find_neurons(model.LensModel(causal))
    assert found.projection is output_layer(causal, family)
    assert found.weight.dtype == torch.float32
