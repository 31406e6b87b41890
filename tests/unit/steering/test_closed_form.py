"""Reading at the steered layer in closed form, against making and reading each changed residual."""

import pytest
import torch
from chain import Chain, questions
from families import tiny
from safetensors.torch import load_file
from test_interventions import IDS, OPTIONS, made_up_sweep

from layercal import model
from layercal.model import unembedding
from layercal.steering import interventions
from layercal.steering.closed_form import ClosedForm

ALPHAS = [-1.0, 0, 0.5, 4.0]


def test_equals_each_change_read_by_the_model(family):
    read = model.LensModel(tiny(family))
    assert unembedding.reads_in_closed_form(read)
    prefix, fitted = read.prefix(torch.tensor(IDS)), made_up_sweep(read)
    closed = ClosedForm(read, fitted, ALPHAS)
    for own, options in ((1, OPTIONS), (2, OPTIONS[:2])):
        found = closed.sweep(prefix.residuals, options, own)
        (expected,) = interventions.sweep_prompt(
            read, prefix, options, fitted, own, ALPHAS, ["lens"]
        ).values()
        for name, like in vars(expected).items():
            torch.testing.assert_close(getattr(found, name), like, atol=1e-4, rtol=1e-4)
        still = found.fitted[..., 1, :]
        assert torch.equal(still, still[:1, :1].expand_as(still))  # the same whatever is added
        assert torch.equal(found.controls[..., 1, :], still[0, [0, 0]])


def test_a_norm_of_another_kind_is_seen(tiny_model, monkeypatch):
    """Where its scale is not that of a mean square, all is made and read."""
    read = model.LensModel(tiny_model)
    norm = read.readout.after[0]
    monkeypatch.setattr(norm, "forward", lambda h: torch.tanh(h))
    assert not unembedding.reads_in_closed_form(read)


def test_a_study_that_reads_at_the_steered_layer_runs_no_prompt(tmp_path, monkeypatch):
    chain = Chain(tmp_path)
    chain.fetch(questions("ABCD" * 6))
    for stage in ("prompts", "extract", "lens", "metrics", "directions"):
        getattr(chain, stage)()
    chain.steer()
    expected = load_file(chain.path("logits-0.safetensors"))
    for way in ("prefix", "streams", "residuals"):
        monkeypatch.setattr(model.LensModel, way, lambda *_: pytest.fail("a prompt ran"))
    chain.steer(modes=["lens"])
    found = load_file(chain.path("logits-0.safetensors"))
    assert {name.partition("/")[0] for name in found} == {"lens", "rows"}
    for name, values in found.items():
        assert torch.equal(values, expected[name])
