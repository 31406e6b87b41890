from pathlib import Path

import numpy as np
import pytest
import torch
from families import FAMILIES, tiny
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).parents[1]
torch.set_num_threads(1)  # tiny models: threads only wait for each other


def word_tokenizer(letters=" A", vocabulary=()) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer; its merges decide whether ' A' .. ' D' are one token each."""
    space = "Ġ"
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(space, letter) for letter in letters.strip()]
    entries = [*symbols, *(f"{a}{b}" for a, b in merges)]
    backend = Tokenizer(
        models.BPE(vocab={symbol: i for i, symbol in enumerate(entries)}, merges=merges)
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=["llama", "qwen2"])
def tiny_model(request):
    return tiny(request.param)


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    """Every family that layercal is proven on."""
    return request.param
