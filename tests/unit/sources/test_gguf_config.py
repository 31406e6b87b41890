"""What a GGUF file says of its model is what the converted model does, or the file is refused."""

import math

import pytest
import torch
from conftest import word_tokenizer
from families import tiny as tiny_of_family
from families import write_gguf
from transformers import AutoModelForCausalLM

from layercal import InputError
from layercal.sources.gguf_files import convert_gguf

TOKENS = torch.arange(1, 61)[None]
HEAD = {"attention.key_length": 8, "attention.value_length": 8}
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 8.0,
    "beta_slow": 2.0,
    "attention_factor": 1.25,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LONG = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [3.0, 5.0, 9.0],
}
GEMMA3 = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 3e4},
    "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
}


def llama3_factors(theta, width, said):
    """What llama.cpp's script writes for Llama 3.1, by the formula of Meta's reference code."""
    factors = []
    for place in range(0, width, 2):
        wavelength = 2 * math.pi * theta ** (place / width)
        periods = said["original_max_position_embeddings"] / wavelength
        low, high = said["low_freq_factor"], said["high_freq_factor"]
        if periods > high:
            factors.append(1.0)
        elif periods < low:
            factors.append(said["factor"])
        else:
            smooth = (periods - low) / (high - low)
            factors.append(1 / ((1 - smooth) / said["factor"] + smooth))
    return factors


def rope(theta=10000.0, **more):
    return {"rope_parameters": {"rope_theta": theta, **more}}


# kind -> family, settings of its config, keys and tensors that say them
KINDS = {
    "base": ("llama", rope(300.0), {"rope.freq_base": 300.0, "rope.dimension_count": 8}, {}),
    "linear": (
        "llama",
        rope(rope_type="linear", factor=4.0),
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        {},
    ),
    "linear, as once written": (
        "qwen2",
        rope(rope_type="linear", factor=4.0),
        {"rope.scale_linear": 4.0},
        {},
    ),
    "yarn": (
        "qwen2",
        rope(**YARN),
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 16,
            "rope.scaling.yarn_beta_fast": 8.0,
            "rope.scaling.yarn_beta_slow": 2.0,
            "rope.scaling.yarn_attn_factor": 1.25,
        },
        {},
    ),
    "yarn, by its defaults": (
        "qwen3",
        {
            "head_dim": 8,
            **rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
        },
        {
            "rope.scaling.type": "yarn",
            "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 64,
            **HEAD,
        },
        {},
    ),
    "llama3": (
        "llama",
        rope(500.0, **LLAMA3),
        {"rope.freq_base": 500.0},
        {"rope_freqs.weight": llama3_factors(500.0, 8, LLAMA3)},
    ),
    "bias": ("llama", {"attention_bias": True, "mlp_bias": True}, {}, {}),
    "head width": (
        "llama",
        {"head_dim": 16},
        {"attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16},
        {},
    ),
    "partial": (
        "phi3",
        rope(partial_rotary_factor=0.75),
        {"rope.dimension_count": 6, "attention.sliding_window": 0},
        {},
    ),
    "window": ("phi3", {"sliding_window": 7}, {"attention.sliding_window": 7}, {}),
    "longrope, short": (
        "phi3",
        {**rope(partial_rotary_factor=0.75, **LONG), "original_max_position_embeddings": 64},
        {
            "rope.dimension_count": 6,
            "rope.scaling.original_context_length": 64,
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(4) / math.log(64)),
        },
        {
            "rope_factors_short.weight": LONG["short_factor"],
            "rope_factors_long.weight": LONG["long_factor"],
        },
    ),
    "longrope, long": (
        "phi3",
        {**rope(partial_rotary_factor=0.75, **LONG), "original_max_position_embeddings": 32},
        {
            "rope.scaling.type": "longrope",
            "rope.dimension_count": 6,
            "rope.scaling.original_context_length": 32,
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(8) / math.log(32)),
        },
        {
            "rope_factors_short.weight": LONG["short_factor"],
            "rope_factors_long.weight": LONG["long_factor"],
        },
    ),
    "starcoder2": ("starcoder2", rope(300.0), {"rope.freq_base": 300.0}, {}),
    "stablelm": (
        "stablelm",
        {"partial_rotary_factor": 0.5, **rope(300.0)},
        {"rope.dimension_count": 4, "rope.freq_base": 300.0, "use_parallel_residual": False},
        {},
    ),
    "gemma2": (
        "gemma2",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 6,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
        },
        {
            "attention.sliding_window": 6,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 4.0,
            **HEAD,
        },
        {},
    ),
    "gemma3": (
        "gemma3_text",
        {
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "sliding_window": 6,
            "sliding_window_pattern": 3,
            "rope_parameters": GEMMA3,
        },
        {
            "attention.sliding_window": 6,
            "attention.sliding_window_pattern": 3,
            "rope.freq_base": 3e4,
            "rope.freq_base_swa": 500.0,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 8.0,
            **HEAD,
        },
        {},
    ),
    "gemma3, no window": (
        "gemma3_text",
        {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window_pattern": 1},
        {"rope.freq_base": 1e6, **HEAD},
        {},
    ),
    "nemotron": (
        "nemotron",
        rope(rope_type="linear", factor=4.0, partial_rotary_factor=0.25),
        {
            "rope.dimension_count": 2,
            "rope.scaling.type": "linear",
            "rope.scaling.factor": 4.0,
        },
        {},
    ),
    "experts": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8}
        | {"norm_topk_prob": True},
        {
            "expert_count": 4,
            "expert_used_count": 2,
            "expert_feed_forward_length": 24,
            **HEAD,
        },
        {},
    ),
    "gpt2": ("gpt2", {"max_position_embeddings": 80}, {}, {}),
}


def tiny(family, **settings):
    return tiny_of_family(family, vocab_size=len(word_tokenizer()), **settings)


def converted(model, tmp_path, states, factors):
    vocabulary = word_tokenizer()
    write_gguf(tmp_path / "tiny.gguf", model, vocabulary, states=states, factors=factors)
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    return AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)


def logits(model):
    with torch.inference_mode():
        return model.eval()(TOKENS).logits[0]


def rounded(model):
    """The model with each weight as bfloat16 keeps it."""
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_file_says_is_what_the_model_does(kind, tmp_path):
    family, settings, states, factors = KINDS[kind]
    # weights that bfloat16 holds exactly: what differs is not rounding
    model = rounded(tiny(family, **settings))
    found = logits(converted(model, tmp_path, states, factors))
    torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=2e-4)


SCALED = ["base", "linear", "yarn", "llama3", "partial", "window", "longrope, long", "starcoder2"]


@pytest.mark.parametrize("kind", [*SCALED, "gemma2", "gemma3", "stablelm"])
def test_the_unscaled_twin_gives_other_numbers(kind, tmp_path):
    """So that the test above cannot pass by chance."""
    family, settings, *_ = KINDS[kind]
    kept = {name: settings[name] for name in ("head_dim",) if name in settings}
    twin = rounded(tiny(family, **kept))
    assert (logits(twin) - logits(rounded(tiny(family, **settings)))).abs().max() > 0.3


@pytest.mark.parametrize(
    ("family", "states", "factors", "named"),
    [
        ("llama", {"attention.scale": 2.0}, {}, "llama.attention.scale = 2.0"),
        ("llama", {"rope.dimension_count": 4}, {}, "llama.rope.dimension_count = 4"),
        ("llama", {"expert_count": 8}, {}, "llama.expert_count = 8"),
        ("llama", {"attention.causal": False}, {}, "llama.attention.causal = False"),
        ("llama", {"rope.scaling.type": "dynamic"}, {}, "llama.rope.scaling.type = dynamic"),
        ("llama", {"attention.value_length": 4}, {}, "llama.attention.value_length = 4"),
        ("llama", {}, {"blk.0.attn_sinks.weight": [1.0]}, "tensor blk.0.attn_sinks.weight"),
        ("qwen2", {"attention.sliding_window": 6}, {}, "qwen2.attention.sliding_window = 6"),
        ("gemma2", {"rope.freq_base_swa": 5.0, **HEAD}, {}, "gemma2.rope.freq_base_swa = 5.0"),
        (
            "llama",
            {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0},
            {"rope_freqs.weight": [1.0, 1.0, 1.0, 1.0]},
            "rope.scaling.type = yarn, llama.rope.scaling.factor = 2.0",
        ),
    ],
)
def test_what_no_config_takes_is_refused_by_name(family, states, factors, named, tmp_path):
    settings = {"head_dim": 8} if family == "gemma2" else {}
    with pytest.raises(InputError, match=r"does not take.*Use the model's safetensors") as error:
        converted(tiny(family, **settings), tmp_path, states, factors)
    assert named in str(error.value)
    assert not (tmp_path / "model").exists()


def test_all_that_is_refused_is_in_one_message(tmp_path):
    states = {"attention.scale": 2.0, "residual_scale": 0.5}
    with pytest.raises(InputError, match=r"attention\.scale = 2\.0.*residual_scale.*blk\.0\.sinks"):
        converted(tiny("llama"), tmp_path, states, {"blk.0.sinks.weight": [1.0]})


def test_weights_of_another_shape_are_refused(tmp_path):
    states = {"attention.key_length": 16, "attention.value_length": 16, "rope.dimension_count": 16}
    with pytest.raises(InputError, match=r"another shape than its config says: .*\.k_proj\.weight"):
        converted(tiny("llama"), tmp_path, states, {})


def test_a_llama_whose_name_is_mistral(tmp_path):
    """transformers takes that name for another architecture."""
    model = rounded(tiny("llama"))
    write_gguf(tmp_path / "tiny.gguf", model, word_tokenizer(), name="mistral")
    convert_gguf(tmp_path / "tiny.gguf", tmp_path / "model")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-4, atol=2e-4)


def test_a_key_that_changes_nothing_passes(tmp_path):
    states = {"attention.causal": True, "expert_count": 0, "rope.scaling.type": "none"}
    model = rounded(tiny("llama"))
    found = logits(converted(model, tmp_path, states, {}))
    torch.testing.assert_close(found, logits(model), rtol=1e-4, atol=2e-4)
