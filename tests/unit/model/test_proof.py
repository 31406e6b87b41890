"""What is handed on as a model loads and answers; all else is refused before a manifest stands."""

import copy
import io
import json
import logging

import pytest
import sentencepiece
import torch
from conftest import save_model, word_tokenizer
from families import tiny
from fetching import fetch_model
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from layercal import InputError
from layercal.model import loading, proof


def refusal(folder, tmp_path):
    """What is said of a folder that must not be fetched; nothing may be left of it."""
    kept = tmp_path / "kept"
    with pytest.raises(InputError) as error:
        fetch_model("mine", {"folder": str(folder), "licence": "mine"}, kept)
    assert list(kept.iterdir()) == []
    assert str(error.value).startswith(str(folder))
    return str(error.value)


@pytest.fixture
def folder(tmp_path):
    return save_model(tmp_path / "mine")


def test_every_family_is_proven(family, tmp_path, caplog):
    proof.prove(save_model(tmp_path, family))
    assert "no prompt was run" not in caplog.text


@pytest.mark.parametrize(
    ("stored", "run"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("float16", "bfloat16")],
)
def test_weights_run_in_the_dtype_in_which_they_can_be_mapped(tmp_path, monkeypatch, stored, run):
    made = tiny("llama", vocab_size=len(word_tokenizer(" ABCD")))
    made.to(getattr(torch, stored)).save_pretrained(tmp_path)
    word_tokenizer(" ABCD").save_pretrained(tmp_path)
    asked, load = [], loading.causal_model
    monkeypatch.setattr(
        loading, "causal_model", lambda *given, **more: asked.append(given) or load(*given, **more)
    )
    proof.prove(tmp_path)
    assert asked == [(tmp_path, getattr(torch, run), "cpu")]


def test_a_folder_without_a_tokenizer(folder, tmp_path):
    for path in folder.glob("tokenizer*"):
        path.unlink()
    said = refusal(folder, tmp_path)
    assert "no tokenizer in it (tokenizer.json, tokenizer.model, or vocab.json" in said
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    assert refusal(folder, tmp_path) == said  # transformers would make one without words


def test_a_tokenizer_without_words(folder, tmp_path):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"] |= {"vocab": {"a": 0}, "merges": []}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert "into [0], so its vocabulary is not there" in refusal(folder, tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", "tokenizer.json: Git LFS pointers still"),
        ("{}", "no tokenizer that transformers can load: KeyError: 'added_tokens'"),
        ("{", "no tokenizer that transformers can load: "),
    ],
)
def test_a_tokenizer_that_cannot_be_read(folder, tmp_path, content, message):
    (folder / "tokenizer.json").write_text(content)
    assert message in refusal(folder, tmp_path)


def test_words_without_an_embedding(tmp_path):
    said = refusal(save_model(tmp_path / "mine", vocab_size=97), tmp_path)
    assert "163 token(s) beyond the 97 that the model has embeddings of" in said
    assert "resize the embeddings" in said


def test_added_tokens_without_an_embedding(folder, tmp_path, caplog):
    """Gemma-3 has such a one for images: it counts only where prompts are made with it."""
    tokenizer = word_tokenizer(" ABCD")
    tokenizer.add_tokens(["<image>"])
    tokenizer.save_pretrained(folder)
    with caplog.at_level(logging.INFO, "layercal"):
        proof.prove(folder)
    assert "no prompt may hold: ['<image>']" in caplog.text
    tokenizer.chat_template = "<image>{{ messages }}"
    tokenizer.save_pretrained(folder)
    assert "beyond the 260 that the model has embeddings of, such as '<image>' (260)" in refusal(
        folder, tmp_path
    )


@pytest.mark.parametrize("entry", [float("nan"), float("inf")])
def test_weights_that_hold_no_numbers(folder, tmp_path, entry):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.2.mlp.down_proj.weight"][0] = entry
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    said = refusal(folder, tmp_path)
    assert "its logits are NaN or infinite, and so are entries of model.layers.2.mlp.down" in said


def test_a_model_whose_lens_would_not_be_its_own(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(proof, "LensModel", Misread)
    assert "mine: LlamaForCausalLM: the lens at layer 5 differs" in refusal(folder, tmp_path)


class Misread(proof.LensModel):
    """Reads a final norm of another gain than the model's."""

    def __init__(self, model):
        super().__init__(model)
        self.readout.after[0] = copy.deepcopy(self.readout.after[0])
        self.readout.after[0].weight.data.mul_(1.5)


def test_a_model_that_cannot_be_run(tmp_path):
    folder = save_model(tmp_path / "mine", "gpt2", max_position_embeddings=8)
    said = refusal(folder, tmp_path)
    assert "GPT2LMHeadModel cannot run a prompt of 32 tokens: IndexError" in said


def test_a_quantised_checkpoint_is_left_to_the_machine_that_can_run_it(folder, caplog):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (folder / "config.json").write_text(json.dumps(config))
    proof.prove(folder)
    assert "not run here: its weights are quantised" in caplog.text
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer in it"):
        proof.prove(folder)


def test_a_model_of_another_shape(tmp_path):
    """ModernBERT's decoder has a prediction head between norm and unembedding."""
    tokenizer, folder = word_tokenizer(" ABCD"), tmp_path / "mine"
    small = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    small |= {"num_attention_heads": 4, "vocab_size": len(tokenizer), "pad_token_id": 0}
    config = CONFIG_MAPPING["modernbert-decoder"](**small)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert "between its final norm and its unembedding" in refusal(folder, tmp_path)


def test_without_memory_for_a_run_the_tensors_are_compared_all_the_same(
    folder, monkeypatch, caplog
):
    monkeypatch.setattr(proof, "free_memory", lambda: 10_000)
    monkeypatch.setattr(proof, "LensModel", None)
    proof.prove(folder)
    assert "no prompt was run through it: that takes 0.0 GB of memory" in caplog.text
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"it lacks model\.norm\.weight"):
        proof.prove(folder)


def grouped(system, line, **files):
    """A file system as Linux shows it: 8 MB free, and files of control groups."""
    (system / "proc/self").mkdir(parents=True)
    (system / "proc/meminfo").write_text("MemTotal: 16000 kB\nMemAvailable:    8000 kB\n")
    (system / "proc/self/cgroup").write_text(line + "\n")
    for name, content in files.items():
        path = system / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return system


def test_free_memory_is_what_machine_and_job_leave(tmp_path):
    machine = 8000 * 1024
    free = proof.free_memory
    assert free(grouped(tmp_path / "none", "0::/")) == machine
    limited = {"job/memory.max": "5000000\n", "job/memory.stat": "anon 1000\nfile 4000000\n"}
    inner = {"job/step/memory.max": "max\n", "job/step/memory.stat": "anon 900\n"}
    assert free(grouped(tmp_path / "two", "0::/job/step", **limited, **inner)) == 4_999_000
    older = {
        "memory/job/memory.limit_in_bytes": "3000000\n",
        "memory/job/memory.stat": "cache 5\nrss 200\n",
    }
    assert free(grouped(tmp_path / "one", "4:cpu,memory:/job", **older)) == 2_999_800
    assert free(grouped(tmp_path / "other", "3:cpuset:/job", **older)) == machine
    assert free(tmp_path / "nowhere") > machine


def sentences():
    """A sentencepiece model in the manner of Llama's."""
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(
            f"What is {i} + {i}? The Answer: {c}" for i in range(99) for c in "AB"
        ),
        model_writer=made,
        vocab_size=330,
        model_type="bpe",
        byte_fallback=True,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    return made.getvalue()


@pytest.mark.parametrize("family", ["llama", "mistral"])
def test_a_sentencepiece_file_alone_is_read_as_sentencepiece_does(tmp_path, family):
    """transformers drops the space before the text of Mistral's."""
    folder = tmp_path / "mine"
    tiny(family, vocab_size=400).save_pretrained(folder)
    (folder / "tokenizer.model").write_bytes(sentences())
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer"}')
    proof.prove(folder)
    own = sentencepiece.SentencePieceProcessor(model_proto=sentences())
    assert loading.tokenizer(folder).tokenize(proof.TEXT) == own.encode(proof.TEXT, out_type=str)
