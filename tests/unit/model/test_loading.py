"""Checkpoints that are not what their config says, as fetched and as loaded from a folder."""

import json
import logging

import pytest
import torch
from conftest import save_model, word_tokenizer
from families import SMALL
from fetching import fetch_model
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

from layercal import InputError, model
from layercal.model import loading, proof

HEAD = "lm_head.weight"
IDS = torch.tensor([[5, 9, 2, 77, 31, 8]])


def retensor(folder, change):
    """Save the tensors of a folder again, as a function changes them."""
    path = folder / "model.safetensors"
    save_file(change(load_file(path)), path, metadata={"format": "pt"})


def reconfigure(folder, **settings):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def renamed(prefix):
    return lambda folder: retensor(
        folder, lambda tensors: {prefix + k: v for k, v in tensors.items()}
    )


def without(name):
    return lambda folder: retensor(
        folder, lambda tensors: {k: tensors[k] for k in tensors if k != name}
    )


def also(tensors):
    return lambda folder: retensor(folder, lambda found: found | tensors)


def configured(**settings):
    return lambda folder: reconfigure(folder, **settings)


MISFITS = {
    "compiled": (renamed("_orig_mod."), r"lacks lm_head\.weight, .* begin with '_orig_mod\.'"),
    "wrapped": (renamed("module."), r"lacks lm_head\.weight, .* begin with 'module\.'"),
    "no head": (without(HEAD), r"lacks lm_head\.weight\. .* tie_word_embeddings: true"),
    "no norm": (without("model.norm.weight"), r"lacks model\.norm\.weight\. Correct config"),
    "too many layers": (
        configured(num_hidden_layers=7),
        r"lacks model\.layers\.5\.input_layernorm\.weight, .* and 14 more",
    ),
    "too few layers": (
        configured(num_hidden_layers=3),
        r"holds beyond the model model\.layers\.3\.input_layernorm\.weight, .* and 14 more",
    ),
    "a bias that is not asked for": (
        also({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}),
        r"holds beyond the model model\.layers\.0\.self_attn\.q_proj\.bias\.",
    ),
    "vocabulary": (
        configured(vocab_size=300),
        r"holds lm_head\.weight \(260, 32\) for \(300, 32\), model\.embed_tokens\.weight",
    ),
    "width": (
        configured(intermediate_size=64),
        r"model\.layers\.0\.mlp\.down_proj\.weight \(32, 48\) for \(32, 64\)",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_weights_that_do_not_fit_are_refused_by_name(tmp_path, case):
    change, message = MISFITS[case]
    folder = save_model(tmp_path / "mine")
    change(folder)
    with pytest.raises(InputError, match=message):
        model.load(folder, "float32", "cpu")
    entry = {"folder": str(folder), "licence": "mine"}
    with pytest.raises(InputError, match=f"^{folder}: its weights are not .*{message}"):
        fetch_model("mine", entry, tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


HARMLESS = {
    "position tables": (
        "llama",
        {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(5)},
    ),
    "causal masks": (
        "gptj",
        {
            f"transformer.h.{i}.attn.{name}": mask
            for i in range(5)
            for name, mask in (
                ("bias", torch.ones(1, 1, 9, 9).tril()),
                ("masked_bias", torch.tensor(-1e9)),
            )
        },
    ),
    "causal masks, without the prefix": (
        "gpt2",
        {f"h.{i}.attn.bias": torch.ones(1, 1, 9, 9).tril() for i in range(5)},
    ),
    "a head of its own": ("qwen2", {"lm_head.weight": torch.ones(260, 32)}),
    "a vision tower": ("llama", {"vision_tower.layers.0.weight": torch.ones(2, 2)}),
    "a value head": ("llama", {"v_head.summary.weight": torch.ones(1, 32)}),
}


@pytest.mark.parametrize("case", HARMLESS)
def test_what_is_no_weight_of_the_model_may_be_there(tmp_path, case, caplog):
    family, tensors = HARMLESS[case]
    folder = save_model(tmp_path / "mine", family)
    before = model.load(folder, "float32", "cpu").residuals(IDS)
    also(tensors)(folder)
    with caplog.at_level(logging.INFO, "layercal"):
        read = model.load(folder, "float32", "cpu")
    assert torch.equal(read.residuals(IDS), before)
    beside = [name for name in tensors if name.startswith("v")]
    assert all(name in caplog.text for name in beside) and ("not read" in caplog.text) == bool(
        beside
    )
    assert read.head.weight.eq(1).all() == (HEAD in tensors)
    proof.prove(folder)


def test_only_the_text_part_of_a_larger_model_is_read(tmp_path):
    """Llama-4's towers are left out; its language model gives the logits of the whole."""
    tokenizer, small = word_tokenizer(" ABCD"), {"hidden_size": 32, "intermediate_size": 48}
    text = {"vocab_size": len(tokenizer), "head_dim": 8, "attention_chunk_size": 6}
    text |= {"num_local_experts": 4, "intermediate_size_mlp": 48, "moe_layers": [1, 3]}
    vision = {"num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28, "patch_size": 14}
    vision |= {"vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}
    config = CONFIG_MAPPING["llama4"](text_config=SMALL | text, vision_config=small | vision)
    torch.manual_seed(0)
    whole = AutoModelForImageTextToText.from_config(config).float().eval()
    whole.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    proof.prove(tmp_path)
    read = model.load(tmp_path, "float32", "cpu")
    with torch.no_grad():
        expected = whole(input_ids=IDS).logits[0, -1]
    torch.testing.assert_close(read.unembed(read.residuals(IDS)[0, -1]), expected)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (POINTER, r": model\.safetensors: Git LFS pointers still, .* run git lfs pull"),
        (b"", r"/model\.safetensors: damaged or cut short \(.*header too small\)"),
        (None, r"/model\.safetensors: damaged or cut short \(.*not fully covered\)"),
    ],
    ids=["pointer", "empty", "half"],
)
def test_weights_that_are_not_whole_are_refused(tmp_path, content, message):
    folder = save_model(tmp_path / "mine")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(InputError, match=f"^{folder}{message}"):
        model.load(folder, "float32", "cpu")
    entry = {"folder": str(folder), "licence": "mine"}
    with pytest.raises(InputError, match=f"^{folder}{message}"):
        fetch_model("mine", entry, tmp_path / "kept")
    assert list((tmp_path / "kept").iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "nosuch"}, "model type `nosuch`"),
        ({"hidden_act": "nosuch"}, "KeyError: 'nosuch'"),
        ({"num_attention_heads": 5}, r"hidden size \(32\) is not a multiple"),
    ],
)
def test_a_config_that_no_model_has_is_one_clear_error(tmp_path, settings, message):
    reconfigure(save_model(tmp_path), **settings)
    with pytest.raises(InputError, match=f"no causal language model .*{message}"):
        model.load(tmp_path, "float32", "cpu")


def test_a_tokenizer_with_code_of_its_own_runs_only_if_it_is_trusted(tmp_path):
    folder = save_model(tmp_path / "mine")
    path = folder / "tokenizer_config.json"
    own = {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    (folder / "mine.py").write_text(
        "from transformers import PreTrainedTokenizerFast\n"
        "class Mine(PreTrainedTokenizerFast):\n    pass\n"
    )
    with pytest.raises(InputError, match=r"no tokenizer .* custom code"):
        loading.tokenizer(folder)
    assert type(loading.tokenizer(folder, trust_remote_code=True)).__name__ == "Mine"
    entry = {"folder": str(folder), "licence": "mine"}
    with pytest.raises(InputError, match=f"^{folder}: no tokenizer .* custom code"):
        fetch_model("mine", entry, tmp_path / "kept")
    fetch_model("mine", entry | {"trust_remote_code": True}, tmp_path / "kept")
