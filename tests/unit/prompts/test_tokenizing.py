"""Tokenizers of GGUF files and of tokenizer.model alone, and what is said of how prompts begin."""

import json
import logging

import gguf
import pytest
from conftest import word_tokenizer
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from layercal import InputError
from layercal.prompts import tokenizing
from layercal.sources.gguf_tokenizer import read_tokenizer

TEXT = "Don't I'LL  say\n\n12,345 a1?!  (x^2) 漢字 ½\n \n\t end  "


def write(path, kind="gpt2", pre="gpt-2", tokens=None, arch="llama", **further):
    """Write a GGUF file without a model."""
    words = word_tokenizer()
    tokens = tokens or words.convert_ids_to_tokens(range(len(words)))
    writer = gguf.GGUFWriter(path, arch)
    writer.add_tokenizer_model(kind)
    if pre:
        writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    if kind == "gpt2":
        writer.add_token_merges(["Ġ A"])
    else:
        writer.add_token_scores([-float(i) for i in range(len(tokens))])
        writer.add_token_types([2, 3, 3] + [1] * (len(tokens) - 3))
    for key, value in further.items():
        add = writer.add_bool if isinstance(value, bool) else writer.add_uint32
        add(f"tokenizer.ggml.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def cut(pre_tokenizer, text=TEXT):
    """Pieces, in the byte-level alphabet."""
    return [piece for piece, _ in pre_tokenizer.pre_tokenize_str(text)]


def spelled(*pieces):
    return [
        cut(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), piece)[0]
        for piece in pieces
    ]


GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
# as the families' own tokenizer.json build them, of other parts than the patterns under test
DIGITS = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT2])
OWN = {
    "gpt-2": GPT2,
    "olmo": GPT2,
    "smollm": DIGITS,
    "starcoder": DIGITS,
    "refact": DIGITS,
    "command-r": DIGITS,
    "codeshell": DIGITS,
}


@pytest.mark.parametrize("name", OWN)
def test_text_is_cut_as_the_family_cuts_it(name, tmp_path):
    tokenizer = read_tokenizer(write(tmp_path / "a.gguf", pre=name))
    found = cut(tokenizer.backend_tokenizer.pre_tokenizer)
    assert found == cut(OWN[name])
    assert (found == cut(GPT2)) == (OWN[name] is GPT2)


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("stablelm2", ["I", "'ll", " say", "\n\n", "1", "2", "3", "4", ",(", "x", ")"]),
        ("llama-bpe", ["I", "'ll", " say", "\n\n", "123", "4", ",(", "x", ")"]),
        ("default", ["I", "'", "ll", " say", "\n", "\n", "123", "4", ",(", "x", ")"]),
        ("falcon", ["I", "'", "ll", " say", "\n", "\n", "123", "4", ",(", "x", ")"]),
        ("deepseek-llm", ["I", "'", "ll", " say", "\n", "\n", "1234", ",(", "x", ")"]),
        ("deepseek-coder", [*"I'", "ll", " say", "\n", "\n", *"1234", ",(", "x", ")"]),
        ("viking", ["I'll", " say", "\n\n", "1", "2", "3", "4", ",(", "x", ")"]),
    ],
)
def test_text_is_cut_by_patterns_one_after_the_other(name, pieces, tmp_path):
    path = write(tmp_path / "a.gguf", pre=name, bos_token_id=0)
    found = cut(read_tokenizer(path).backend_tokenizer.pre_tokenizer, "I'll say\n\n1234,(x)")
    assert found == spelled(*pieces)


def test_the_cuts_outlive_saving(tmp_path):
    read_tokenizer(write(tmp_path / "a.gguf", pre="smollm")).save_pretrained(tmp_path / "kept")
    kept = AutoTokenizer.from_pretrained(tmp_path / "kept")
    assert cut(kept.backend_tokenizer.pre_tokenizer) == cut(DIGITS)


def test_an_unknown_cut_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"a\.gguf: its pre-tokenizer 'kimi-k9' is not known"):
        read_tokenizer(write(tmp_path / "a.gguf", pre="kimi-k9"))


def test_no_name_of_a_cut_is_said(tmp_path, caplog):
    tokenizer = read_tokenizer(write(tmp_path / "a.gguf", pre=None))
    assert "names no pre-tokenizer" in caplog.text
    default = read_tokenizer(write(tmp_path / "b.gguf", pre="default"))
    pieces = [cut(one.backend_tokenizer.pre_tokenizer) for one in (tokenizer, default)]
    assert pieces[0] == pieces[1] != cut(GPT2)


@pytest.mark.parametrize("pre", ["llama-bpe", "tekken"])
def test_bos_where_the_flag_is_missing(pre, tmp_path):
    def begins(**further):
        tokenizer = read_tokenizer(write(tmp_path / "a.gguf", pre=pre, **further))
        tokenizer.save_pretrained(tmp_path / "kept")
        return AutoTokenizer.from_pretrained(tmp_path / "kept")("A")["input_ids"][0] == 7

    assert begins(bos_token_id=7)
    assert begins(bos_token_id=7, add_bos_token=True)
    assert not begins(bos_token_id=7, add_bos_token=False)
    assert read_tokenizer(write(tmp_path / "b.gguf", bos_token_id=7))("A")["input_ids"][0] != 7
    with pytest.raises(InputError, match="begins with BOS, and it names none"):
        read_tokenizer(write(tmp_path / "c.gguf", pre=pre))


PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁A", "▁", "A"]


@pytest.mark.parametrize("arch", ["llama", "phi3"])
def test_a_space_before_the_text_if_the_file_wants_it(arch, tmp_path):
    def pieces(text, **further):
        further |= {"bos_token_id": 1}
        path = write(tmp_path / "a.gguf", "llama", "default", PIECES, arch, **further)
        read_tokenizer(path).save_pretrained(tmp_path / "kept")
        found = AutoTokenizer.from_pretrained(tmp_path / "kept")
        ids = found(text)["input_ids"]
        assert found.decode(ids, skip_special_tokens=True) == text
        return found.convert_ids_to_tokens(ids)

    assert pieces("A A") == ["<s>", "▁A", "▁A"]
    assert pieces("A A", add_space_prefix=True) == ["<s>", "▁A", "▁A"]
    assert pieces("A A", add_space_prefix=False) == ["<s>", "A", "▁A"]


@pytest.fixture(scope="module")
def sentencepiece_model(tmp_path_factory):
    path = tmp_path_factory.mktemp("spm") / "tokenizer"
    SentencePieceTrainer.train(
        sentence_iterator=iter([tokenizing.SAMPLE.replace("\n", " ")] * 20),
        model_prefix=str(path),
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        split_digits=True,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return path.with_suffix(".model")


def read_alone(model, folder, kind):
    """transformers' tokenizer of a folder with ``tokenizer.model`` and a config."""
    (folder / "tokenizer.model").write_bytes(model.read_bytes())
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    said = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["mistral", "llama", "mixtral"])
def test_tokenizer_model_alone_is_cut_as_sentencepiece_cuts(kind, sentencepiece_model, tmp_path):
    tokenizer = read_alone(sentencepiece_model, tmp_path, kind)
    own = SentencePieceProcessor(model_file=str(sentencepiece_model)).encode("The answer: 42\n A")
    before = tokenizer("The answer: 42\n A")["input_ids"]
    tokenizing.match_sentencepiece(tokenizer, tmp_path)
    assert tokenizer("The answer: 42\n A")["input_ids"] == [tokenizer.bos_token_id, *own]
    assert (before[1:] == own) == (kind == "llama")


def test_a_cut_that_cannot_be_matched_is_refused(sentencepiece_model, tmp_path):
    read_alone(sentencepiece_model, tmp_path, "mistral")
    with pytest.raises(InputError, match="does not cut text as this file does"):
        tokenizing.match_sentencepiece(word_tokenizer(), tmp_path)


def test_a_tokenizer_json_is_taken_as_it_is(sentencepiece_model, tmp_path):
    tokenizer = read_alone(sentencepiece_model, tmp_path, "mistral")
    before = tokenizer(TEXT)["input_ids"]
    tokenizer.save_pretrained(tmp_path)
    tokenizing.match_sentencepiece(tokenizer, tmp_path)
    assert tokenizer(TEXT)["input_ids"] == before


def test_how_prompts_begin_is_said(caplog):
    caplog.set_level(logging.INFO)
    tokenizer = word_tokenizer()
    ids = [tokenizer(" A B")["input_ids"], tokenizer("C")["input_ids"]]
    tokenizing.log_beginnings(tokenizer, ids)
    assert caplog.messages == ["prompts begin with ['ĠA', 'Ġ', 'B']"]
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizing.log_beginnings(tokenizer, ids)
    assert caplog.records[-1].levelno == logging.WARNING
    assert "no prompt begins with the tokenizer's BOS token, <s>" in caplog.messages[-1]
    tokenizing.log_beginnings(tokenizer, [ids[0], [tokenizer.bos_token_id, 5]])
    assert len(caplog.messages) == 4
    tokenizer.init_kwargs["add_bos_token"] = False
    tokenizing.log_beginnings(tokenizer, ids)
    assert caplog.records[-1].levelno == logging.INFO
    assert caplog.messages[-1].endswith("<s>; its config says so")
