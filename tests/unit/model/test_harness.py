"""The last layer against lm-evaluation-harness: same model, prompts and questions."""

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import word_tokenizer
from families import tiny
from harness import harness_log_probability

from layercal.model import LensModel, lens
from layercal.prompts import templates


@pytest.mark.parametrize("family", ["qwen2", "phi", "gemma2"])
def test_last_layer_is_what_the_harness_says(family, rng):
    tokenizer = word_tokenizer(" ABCDE")
    tokenizer.add_special_tokens({"eos_token": "<e>"})
    made = tiny(family, vocab_size=len(tokenizer), max_position_embeddings=512)
    rows = [
        {
            "subject": "sums",
            "language": "en",
            "question": f"{a} + {b}?",
            "choices": [str(a + b + step) for step in range(2 + a % 4)],
            "answer": int(b % 2),
        }
        for a, b in rng.integers(0, 1000, (12, 2))
    ]
    template = templates.template("hendrycks", tokenizer)
    texts = [template.render(row, []) for row in rows]
    counts = [len(row["choices"]) for row in rows]
    input_ids, option_ids = templates.tokenize(tokenizer, texts, counts, template.lead)
    table = pd.DataFrame({"prompt": texts, "option_ids": option_ids}).assign(
        answer=[row["answer"] for row in rows]
    )
    model = LensModel(made)
    ours = np.full((len(rows), max(counts)), -np.inf)
    for row, (ids, options) in enumerate(zip(input_ids, option_ids, strict=True)):
        read = lens.read(model, model.residuals(torch.tensor([ids]))[0, -1:], torch.tensor(options))
        p = read["logits"].double().softmax(-1) * read["option_mass"][:, None]
        ours[row, : len(options)] = p.log().numpy()[0]
    theirs = harness_log_probability(made, tokenizer, table)
    assert (np.isfinite(ours) == np.isfinite(theirs)).all()
    there = np.isfinite(ours)
    np.testing.assert_allclose(ours[there], theirs[there], atol=1e-4)
    right = table["answer"].to_numpy()
    assert ((ours.argmax(-1) == right) == (theirs.argmax(-1) == right)).all()
