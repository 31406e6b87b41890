"""The norm's scale of another layer, against a norm written here."""

import numpy as np
import pandas as pd
import pytest
import torch
from chain import Chain, questions
from families import tiny
from scipy.special import log_softmax

from layercal.ablation import norm
from layercal.metrics.scoring import Scoring
from layercal.model import LensModel
from layercal.results import Residuals

OPTIONS = torch.tensor([5, 9, 11])
N, LAYERS = 40, 4


@pytest.fixture
def stream():
    drawn = torch.Generator().manual_seed(0)
    grown = torch.tensor([1.0, 2.0, 3.0, 8.0])[:, None]
    return torch.randn(N, LAYERS, 32, generator=drawn) * grown + 0.5


def residuals(stream):
    return Residuals([stream], torch.arange(len(stream)))


@pytest.mark.parametrize(("family", "centred"), [("llama", False), ("gpt2", True)])
def test_only_the_scale_is_that_of_another_layer(stream, family, centred):
    """The norm written out, its gain and bias as the model has them."""
    causal = tiny(family)
    read, n_options = LensModel(causal), torch.full((N,), 3)
    n_options[7] = 2
    last = causal.model.norm if family == "llama" else causal.transformer.ln_f
    bias = last.bias if centred else 0
    h = stream - stream.mean(-1, keepdim=True) if centred else stream
    scale = h.square().mean(-1).sqrt()
    pairs = []
    for layer, norm_layer, logits in norm.patched(read, residuals(stream), OPTIONS, n_options):
        normed = h[:, layer] / scale[:, norm_layer, None] * last.weight + bias
        expected = (normed @ causal.lm_head.weight[OPTIONS].T).detach().numpy()
        assert np.isneginf(logits[7, 2])
        expected[7, 2] = -np.inf
        np.testing.assert_allclose(logits, expected, atol=1e-4)
        pairs.append((layer, norm_layer))
    assert pairs == [(a, b) for a in range(LAYERS) for b in range(a, LAYERS)]


def test_the_table_is_that_of_a_plain_loop(stream):
    read, answer = LensModel(tiny("llama")), np.arange(N) % 3
    scoring = Scoring(answer=answer, cluster=np.arange(N))
    patched = list(norm.patched(read, residuals(stream), OPTIONS, torch.full((N,), 3)))
    table = norm.table(scoring, iter(patched)).set_index(["layer", "norm_layer"])
    nll = {
        pair: -log_softmax(logits, -1)[np.arange(N), answer].astype(float)
        for *pair, logits in patched
        for pair in [tuple(pair)]
    }
    for (layer, norm_layer), values in nll.items():
        row, before = table.loc[layer, norm_layer], nll[layer, layer]
        assert row["nll"] == pytest.approx(values.mean(), abs=1e-6)
        gain = before - values
        assert row["nll_gain"] == pytest.approx(gain.mean(), abs=1e-6)
        if layer < norm_layer:
            reach = 2.0227 * gain.std(ddof=1) / np.sqrt(N)  # Student's, 39 degrees of freedom
            assert row["nll_gain_high"] - gain.mean() == pytest.approx(reach, abs=1e-4)
            excess = (before - nll[LAYERS - 1, LAYERS - 1]).mean()
            assert row["share"] == pytest.approx(gain.mean() / excess, abs=1e-4)
    assert (table.loc[[(layer, layer) for layer in range(LAYERS)], "nll_gain"] == 0).all()


def test_where_the_stream_does_not_grow_the_norm_carries_nothing(stream):
    """And where layers differ by their scale alone nothing is to be carried."""
    read, scoring = LensModel(tiny("llama")), Scoring(answer=np.arange(N) % 3, cluster=np.arange(N))
    even = stream / stream.square().mean(-1, keepdim=True).sqrt()
    table = norm.table(scoring, norm.patched(read, residuals(even), OPTIONS, torch.full((N,), 3)))
    assert table["nll_gain"].abs().max() < 1e-6
    alike = stream[:, :1] * torch.tensor([1.0, 2.0, 4.0, 8.0])[:, None]
    table = norm.table(scoring, norm.patched(read, residuals(alike), OPTIONS, torch.full((N,), 3)))
    own = table[table["layer"] == table["norm_layer"]]
    assert own["nll"].max() - own["nll"].min() < 1e-5
    assert table[table["layer"] < table["norm_layer"]]["nll_gain"].abs().min() > 1e-3


def test_a_stage_reads_what_the_lens_reads(tmp_path):
    """Under its own scale each layer is read as the logit lens reads it."""
    chain = Chain(tmp_path)
    chain.fetch(questions("ABCD" * 6))
    chain.prompts()
    chain.extract()
    chain.lens()
    chain.norm()
    table = pd.read_parquet(chain.path("norm.parquet"))
    options = pd.read_parquet(chain.path("options.parquet"))
    logits = options[[f"logit_{letter}" for letter in "ABCD"]].to_numpy()
    options["nll"] = -log_softmax(logits, -1)[np.arange(len(options)), options["answer"]]
    own = table[table["layer"] == table["norm_layer"]].set_index("layer")["nll"]
    np.testing.assert_allclose(own, options.groupby("layer")["nll"].mean(), atol=1e-5)
