"""Prompts and option letters."""

import pytest
from conftest import word_tokenizer

from layercal import InputError, prompts


def test_hendrycks_prompt():
    row = {"subject": "high_school_physics", "question": "Why?", "choices": list("wxyz")}
    assert prompts.hendrycks(row) == (
        "The following are multiple choice questions (with answers) about high school physics."
        "\n\nWhy?\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    )


def test_option_letters_are_single_tokens():
    tokenizer = word_tokenizer(" ABCD")
    input_ids, option_ids = prompts.tokenize(tokenizer, ["One Answer:", "Two Answer:"], [4, 2])
    assert tokenizer.convert_ids_to_tokens(option_ids[0]) == ["ĠA", "ĠB", "ĠC", "ĠD"]
    assert option_ids[1] == option_ids[0][:2]
    assert [tokenizer.convert_ids_to_tokens(ids)[:3] for ids in input_ids] == [[*"One"], [*"Two"]]


def test_option_letters_that_are_not_single_tokens_are_refused():
    with pytest.raises(InputError, match=r"option letter 'D'.*exactly one token.*'Ġ', 'D'"):
        prompts.tokenize(word_tokenizer(" ABC"), ["Answer:"], [4])
    prompts.tokenize(word_tokenizer(" ABC"), ["Answer:"], [3])
