"""Stages of ablations: their tables against full passes with plain hooks, and models without."""

import numpy as np
import pandas as pd
import pytest
import torch
from chain import Chain, questions
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from layercal.report import figures
from layercal.results import KEY, Results, Run


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    made = Chain(tmp_path_factory.mktemp("chain"))
    made.fetch(questions("ABCD" * 6))
    made.prompts()
    made.extract()
    made.lens()
    made.metrics()
    return made


def passes(model, prompts, module, change):
    """Option logits of full passes, the output of a module changed at the last token."""

    def hook(_, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output
        hidden[0, -1] = change(hidden[0, -1])

    with module.register_forward_hook(hook), torch.inference_mode():
        return np.stack(
            [
                model(torch.tensor([ids.tolist()])).logits[0, -1, options.tolist()].numpy()
                for ids, options in zip(prompts["input_ids"], prompts["option_ids"], strict=True)
            ]
        )


def test_blocks_are_read_at_their_means(chain):
    chain.average()
    chain.ablate()
    chain.blocks()
    held = load_file(chain.path("blocks-0.safetensors"))
    table = pd.read_parquet(chain.path("blocks.parquet"))
    prompts = pd.read_parquet(chain.path("prompts.parquet"))
    model = AutoModelForCausalLM.from_pretrained(chain.manifest.parent).eval()
    answer = prompts["answer"].to_numpy()
    for place, block in enumerate(held["blocks"].tolist()):
        layer = model.model.layers[block - 1]
        for part, module in enumerate((layer.self_attn, layer.mlp)):
            seen = []
            whole = passes(model, prompts, module, lambda h, seen=seen: seen.append(h.clone()) or h)
            mean = torch.stack(seen).mean(0)
            without = passes(model, prompts, module, lambda h, mean=mean: mean)
            np.testing.assert_allclose(held["whole"], whole, atol=1e-4)
            np.testing.assert_allclose(held["without"][:, place, part], without, atol=1e-4)
            row = table.iloc[2 * place + part]
            assert (row["block"], row["part"]) == (block, ("attention", "mlp")[part])
            kept = (without.argmax(-1) == answer).mean() - (whole.argmax(-1) == answer).mean()
            assert row["accuracy_change"] == pytest.approx(kept)


def test_a_model_whose_parts_cannot_be_told_has_empty_tables(chain, tmp_path):
    """Extraction then records neither what blocks write nor neurons."""
    other = chain.at(tmp_path)
    other.manifest = chain.manifest
    for name in ("prompts.parquet", "phase.json"):
        other.path(name).write_bytes(chain.path(name).read_bytes())
    held = load_file(chain.path("residuals-0.safetensors"))
    del held["written"]
    run = Run.load(chain.path("prompts.parquet"))
    save_file(held, other.path("residuals-0.safetensors"), {KEY: run.fingerprint})
    other.average()
    other.ablate()
    other.blocks()
    assert not len(pd.read_parquet(other.path("blocks.parquet")))
    said = figures.draw("blocks", Results.of(blocks=other.path("blocks.parquet")))
    assert "cannot be told apart" in said.alt
