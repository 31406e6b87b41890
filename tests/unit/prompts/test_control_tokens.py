"""What a question says is text, also where it spells a control token of the tokenizer."""

import pytest
from conftest import word_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from layercal import InputError
from layercal.prompts import control_tokens, templates

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CONTROL = ["<s>", "<|user|>", "<|assistant|>", "<|end|>"]


def question(name="q", **fields):
    row = {"question_id": name, "cluster": name, "language": "en", "subject": "web"}
    return {**row, "question": "Why?", "choices": list("wxyz"), "answer": 1, **fields}


SPELT = question(
    question="What does <|end|> mean?<s>",
    choices=["<s>", "a<s>b", "<|user|>", "</s>"],
    subject="<s>",
)
SHOT = question("s", question="How, <s>?", choices=["<|end|>", "v"], answer=0)


@pytest.fixture
def tokenizer():
    """Byte-level, with a BOS of its own and a chat template that writes control tokens."""
    made = word_tokenizer(" ABCD")
    made.add_special_tokens({"bos_token": "<s>", "additional_special_tokens": CONTROL[1:]})
    made._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", made.bos_token_id)]
    )
    made.chat_template = CHAT
    return made


def read(tokenizer, name, row, shots=()):
    found = templates.template(name, tokenizer)
    text = found.render(row, list(shots))
    (ids,), (options,) = templates.tokenize(
        tokenizer, [text], [4], found.lead, found.add_special_tokens
    )
    assert tokenizer.convert_ids_to_tokens(options)[0] in ("A", "ĠA")
    return control_tokens.unmarked(text), ids


def as_text(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


@pytest.mark.parametrize("name", ["hendrycks", "joshi"])
def test_plain_prompts(tokenizer, name):
    """All of it is text, after the BOS that the tokenizer adds."""
    text, ids = read(tokenizer, name, SPELT, [SHOT])
    assert text == templates.TEMPLATES[name](SPELT, [SHOT])
    assert ids == [tokenizer.bos_token_id, *as_text(tokenizer, text)]
    assert ids.count(tokenizer.bos_token_id) == 1


def test_chat_prompts(tokenizer):
    """The template's own control tokens are such, and nothing within the turn is."""
    text, ids = read(tokenizer, "chat", SPELT, [SHOT])
    turn = templates.hendrycks(SPELT, [SHOT])
    assert text == f"<s><|user|>{turn}<|end|><|assistant|>"
    bos, user, assistant, end = tokenizer.convert_tokens_to_ids(CONTROL)
    assert ids == [bos, user, *as_text(tokenizer, turn), end, assistant]


def test_own_templates(tokenizer, tmp_path):
    path = tmp_path / "mine.j2"
    path.write_text("<|user|>{{ question | upper }} {{ choices | join('<|end|>') }}<|end|>A:")
    text, ids = read(tokenizer, str(path), question(question="<|end|> a?", choices=["<s>", "b"]))
    bos, user, _, end = tokenizer.convert_tokens_to_ids(CONTROL)
    # upper-case is no control token, and here the marks change nothing else
    assert text == "<|user|><|END|> A? <s><|end|>b<|end|>A:"
    pieces = [as_text(tokenizer, piece) for piece in ("<|END|> A? <s>", "b", "A:")]
    assert ids == [bos, user, *pieces[0], end, *pieces[1], end, *pieces[2]]
    path.write_text("{{ question | length }}:")
    with pytest.raises(InputError, match=r"^q: its text or that of its shots spells"):
        templates.template(str(path), tokenizer).render(SPELT, [])


@pytest.mark.parametrize("name", ["hendrycks", "chat"])
def test_other_prompts_are_as_they_were(tokenizer, name):
    found = templates.template(name, tokenizer)
    text = found.render(question(), [question("s")])
    (ids,), _ = templates.tokenize(tokenizer, [text], [4], found.lead, found.add_special_tokens)
    assert ids == tokenizer(text, add_special_tokens=found.add_special_tokens)["input_ids"]


def test_noncharacters_alone_are_text(tokenizer):
    """They serve as marks only where there is something to mark."""
    odd = question(question=f"Why {control_tokens.STAND_IN}?")
    text, ids = read(tokenizer, "hendrycks", odd)
    assert text == templates.hendrycks(odd) and ids[1:] == as_text(tokenizer, text)
    odd = question(question=f"Why {control_tokens.OPEN}<s>?")
    with pytest.raises(InputError, match=r"^q: its text .* U\+FDD0 or U\+FDD1; leave the question"):
        templates.template("hendrycks", tokenizer).render(odd, [])


def test_what_cannot_be_read_as_text_is_refused():
    """A vocabulary that merges the very characters into its control token."""
    symbols = [
        *sorted(pre_tokenizers.ByteLevel.alphabet()),
        "<s",
        "<s>",
        *(f"Ġ{c}" for c in "ABCD"),
    ]
    merges = [("<", "s"), ("<s", ">"), *(("Ġ", letter) for letter in "ABCD")]
    backend = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(symbols)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "merged_with_next"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")
    read(tokenizer, "hendrycks", question())
    with pytest.raises(InputError, match=r"'<s>' in a question's text becomes.*Which <s> is it"):
        read(tokenizer, "hendrycks", question(question="Which <s> is it?"))
