"""What a GGUF file says of its model -> a transformers config that says the same, or a refusal.

transformers reads a fixed list of a GGUF's keys and tensors and passes over the others in silence:
scaled and partial rotary embeddings, sliding windows, soft caps. Here every key is either taken,
known to change no number, or named in a refusal; every tensor is one of the model's, or named too.

Defaults of keys that are left out are those of llama.cpp, the format's reference
(``llama-model.cpp`` and ``models/*.cpp``); what its conversion scripts write is what is read back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, dequantize
from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.integrations.gguf import (
    GGUF_CONFIG_ARCHS,
    get_gguf_config,
    is_gguf_arch_supported,
    read_gguf_metadata,
)
from transformers.modeling_gguf_pytorch_utils import (
    TENSOR_PROCESSORS,
    TensorProcessor,
    get_gguf_hf_weights_map,
    load_gguf_checkpoint,
)

from layercal import InputError

# what a family's code fixes, or the tensors' shapes say again
HARMLESS = {
    "context_length",
    "vocab_size",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",  # of a scaling that is not there
    "use_parallel_residual",
}
# ... and what changes nothing at this value
IDLE = {
    "attention.causal": True,
    "attention.clamp_kqv": 0.0,
    "attention.max_alibi_bias": 0.0,
    "attention.sliding_window": 0,
    "expert_count": 0,
    "expert_used_count": 0,
    "logit_scale": 1.0,
    "rope.scaling.attn_factor": 1.0,
    "rope.scaling.factor": 1.0,
    "rope.scaling.type": "none",
    "rope.scaling.yarn_ext_factor": 1.0,
}
PARTIAL_ROTARY = {"phi3", "stablelm", "nemotron"}
ROPE_TENSORS = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
# the two models whose attention is not scaled by the width of a head, by architecture and depth
SCALED_BY_WIDTH = {("gemma2", 46), ("gemma3", 62)}


class Stated(dict):
    """The metadata of a file; remembers what of it was asked for.

    Parameters
    ----------
    metadata : dict
        Key -> value; arrays of strings as their length.

    Attributes
    ----------
    architecture : str
    asked : set of str
    """

    def __init__(self, metadata: dict):
        super().__init__(metadata)
        self.asked: set[str] = set()
        self.architecture = super().__getitem__("general.architecture")

    def __getitem__(self, key: str) -> Any:
        self.asked.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        """As a dict's, noting the key."""
        self.asked.add(key)
        return super().get(key, default)

    def own(self, name: str, default: Any = None) -> Any:
        """Value of a key of the architecture."""
        return self.get(f"{self.architecture}.{name}", default)

    def expect(self, name: str, value: Any) -> None:
        """Take a key of the architecture only if it says what holds anyway."""
        key = f"{self.architecture}.{name}"
        if super().get(key, value) == value:
            self.asked.add(key)

    def leave(self, name: str) -> None:
        """Take back that a key of the architecture was asked for."""
        self.asked.discard(f"{self.architecture}.{name}")

    def left(self) -> list[str]:
        """What nobody asked for and might change a number, with its value.

        All that is of the model stands under the architecture's name.
        """
        for name, value in IDLE.items():
            self.expect(name, value)
        harmless = {f"{self.architecture}.{name}" for name in HARMLESS}
        return [
            f"{key} = {dict.__getitem__(self, key)}"
            for key in self
            if key.startswith(f"{self.architecture}.") and key not in self.asked | harmless
        ]


def read_config(path: Path) -> PreTrainedConfig:
    """Read the config of a GGUF file's model.

    Parameters
    ----------
    path : path

    Raises
    ------
    InputError
        If the file says something that no config takes; names all such keys and tensors.
    ValueError
        If transformers does not know the architecture, or the file is none.
    """
    metadata, names = read_gguf_metadata(str(path))
    stated = Stated(metadata)
    if stated.architecture in GGUF_CONFIG_ARCHS:
        config = get_gguf_config(stated, names)
    else:
        config = _legacy_config(path, stated, set(names))
    made = CONFIG_MAPPING[config["model_type"]].from_dict(config)
    left = stated.left() + _tensors_left(made, stated.architecture, names)
    if left:
        raise InputError(
            f"{path.name}: it says what transformers' {made.model_type} does not take, and its "
            f"numbers would be others: {', '.join(left)}. Use the model's safetensors"
        )
    return made


def _tensors_left(config: PreTrainedConfig, architecture: str, names: tuple[str, ...]) -> list[str]:
    """Tensors without a place in the model; where transformers reports them itself, none."""
    import torch
    from transformers import AutoModelForCausalLM

    if is_gguf_arch_supported(architecture):
        return []
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    taken = {*get_gguf_hf_weights_map(model, processor), *ROPE_TENSORS}
    return [f"tensor {name}" for name in names if not taken & {name, name.removesuffix(".weight")}]


def _legacy_config(path: Path, stated: Stated, names: set[str]) -> dict:
    """The config that transformers' table makes, and what that table leaves out."""
    config = {"pad_token_id": None, **load_gguf_checkpoint(str(path))["config"]}
    if stated.architecture == "llama":  # whatever its name says: a Mistral's is `mistral`
        config["model_type"] = "llama"
    for name, attribute in _table(stated.architecture).items():
        if attribute and not isinstance(dict.get(stated, f"{stated.architecture}.{name}"), list):
            stated.own(name)
    kind = CONFIG_MAPPING[config["model_type"]]
    config |= _heads(stated, kind)
    if hasattr(kind(), "rope_parameters"):
        config.pop("rope_theta", None)
        config["rope_parameters"] = _rope(path, stated, names)
    return config | EXTRA.get(stated.architecture, _nothing)(stated, config, names)


def _table(architecture: str) -> dict[str, str | None]:
    """Table of keys that transformers takes; some names it spells with another separator."""

    def plain(name: str) -> str:
        return name.replace("_", "").replace("-", "")

    tables: dict[str, Any] = {plain(name): table for name, table in GGUF_CONFIG_MAPPING.items()}
    return tables[plain(architecture)]


def _head_size(stated: Stated) -> int | None:
    heads = stated.own("attention.head_count")
    if not isinstance(heads, int) or not heads:
        return None
    return stated.own("attention.key_length", stated.own("embedding_length") // heads)


def _heads(stated: Stated, kind: type[PreTrainedConfig]) -> dict:
    """Width of a head, which some configs state and others derive."""
    size = _head_size(stated)
    if size is None:
        return {}
    stated.expect("attention.value_length", size)
    stated.expect("attention.head_count_kv", stated.own("attention.head_count"))
    if hasattr(kind(), "head_dim"):
        return {"head_dim": size}
    if size * stated.own("attention.head_count") != stated.own("embedding_length"):
        stated.leave("attention.key_length")
    return {}


def _rope(path: Path, stated: Stated, names: set[str]) -> dict:
    """Base, scaling and share of the rotary embedding."""
    size = _head_size(stated)
    rope = {"rope_theta": float(stated.own("rope.freq_base", 10000.0))}
    rope |= _scaling(path, stated, names)
    if stated.architecture in PARTIAL_ROTARY:
        rope["partial_rotary_factor"] = stated.own("rope.dimension_count", size) / size
    else:
        stated.leave("rope.dimension_count")
        stated.expect("rope.dimension_count", size)
    return rope


def _scaling(path: Path, stated: Stated, names: set[str]) -> dict:
    """How frequencies are scaled: by a factor each, by one factor, or by yarn."""
    if names & ROPE_TENSORS:
        return _factor_each(path, stated, names)
    kind = stated.own("rope.scaling.type", "linear")
    factor = stated.own("rope.scaling.factor", stated.own("rope.scale_linear", 0.0)) or 1.0
    if kind == "yarn":
        return _yarn(stated) | {"factor": factor}
    if kind != "linear":  # `none` is known to be idle; others are not known
        stated.leave("rope.scaling.type")
    elif factor != 1.0:
        return {"rope_type": "linear", "factor": factor}
    return {"rope_type": "default"}


def _yarn(stated: Stated) -> dict:
    further = {
        "attention_factor": stated.own("rope.scaling.yarn_attn_factor"),
        "beta_fast": stated.own("rope.scaling.yarn_beta_fast"),
        "beta_slow": stated.own("rope.scaling.yarn_beta_slow"),
    }
    return {
        "rope_type": "yarn",
        "original_max_position_embeddings": _original_context(stated),
        **{name: value for name, value in further.items() if value is not None},
    }


def _factor_each(path: Path, stated: Stated, names: set[str]) -> dict:
    """Longrope: factors for short and for long prompts; Llama 3.1's are the same for both."""
    stated.expect("rope.scaling.type", "longrope")
    same = "rope_freqs.weight" in names
    short, long = (
        _tensor(path, "rope_freqs.weight" if same else f"rope_factors_{which}.weight")
        for which in ("short", "long")
    )
    return {
        "rope_type": "longrope",
        "short_factor": short,
        "long_factor": long,
        "attention_factor": 1.0 if same else float(stated.own("rope.scaling.attn_factor", 1.0)),
        "original_max_position_embeddings": _original_context(stated),
    }


def _original_context(stated: Stated) -> int:
    return stated.own("rope.scaling.original_context_length", stated.own("context_length"))


def _tensor(path: Path, name: str) -> list[float]:
    found = [one for one in GGUFReader(path).tensors if one.name == name]
    if not found:
        raise InputError(f"{path.name}: it lacks {name}")
    return np.asarray(dequantize(found[0].data, found[0].tensor_type), float).ravel().tolist()


def _nothing(stated: Stated, config: dict, names: set[str]) -> dict:
    return {}


def _llama(stated: Stated, config: dict, names: set[str]) -> dict:
    return {
        "attention_bias": "blk.0.attn_q.bias" in names,
        "mlp_bias": "blk.0.ffn_up.bias" in names,
    }


def _phi3(stated: Stated, config: dict, names: set[str]) -> dict:
    rope = config["rope_parameters"]
    if rope["rope_type"] == "yarn":  # transformers' phi3 takes that word for longrope
        stated.leave("rope.scaling.type")
    original = rope.pop("original_max_position_embeddings", config["max_position_embeddings"])
    return {
        "sliding_window": stated.own("attention.sliding_window") or None,
        "original_max_position_embeddings": original,
    }


def _gemma(stated: Stated, config: dict, names: set[str]) -> dict:
    """Soft caps, scale of the attention, and which layers look through a window."""
    depth, gemma3 = config["num_hidden_layers"], stated.architecture == "gemma3"
    period = stated.own("attention.sliding_window_pattern", 6 if gemma3 else 2)
    if gemma3 and not stated.own("attention.sliding_window"):
        period = 1
    windows = period if isinstance(period, list) else [(i + 1) % period != 0 for i in range(depth)]
    found = {
        "layer_types": ["sliding_attention" if one else "full_attention" for one in windows],
        "query_pre_attn_scalar": config["head_dim"],
        "attn_logit_softcapping": stated.own("attn_logit_softcapping") or None,
        "final_logit_softcapping": stated.own("final_logit_softcapping") or None,
    }
    if (stated.architecture, depth) in SCALED_BY_WIDTH:
        width = config["hidden_size"] // config["num_attention_heads"]
        found["query_pre_attn_scalar"] = width
    if not gemma3:
        stated.expect("rope.freq_base_swa", config["rope_parameters"]["rope_theta"])
        return found
    local = float(stated.own("rope.freq_base_swa", 10000.0))
    return found | {
        "rope_parameters": {
            "full_attention": config["rope_parameters"],
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
    }


def _starcoder2(stated: Stated, config: dict, names: set[str]) -> dict:
    return {"use_bias": "blk.0.attn_q.bias" in names}


def _gpt2(stated: Stated, config: dict, names: set[str]) -> dict:
    return {
        "n_positions": config["n_ctx"],
        "n_inner": config.pop("feed_forward_length", None),
    }


def _experts(stated: Stated, config: dict, names: set[str]) -> dict:
    widths = {
        "moe_intermediate_size": stated.own("expert_feed_forward_length"),
        "shared_expert_intermediate_size": stated.own("expert_shared_feed_forward_length"),
    }
    return {name: width for name, width in widths.items() if width is not None}


def _nemotron(stated: Stated, config: dict, names: set[str]) -> dict:
    epsilon = stated.own("attention.layer_norm_epsilon")
    return {} if epsilon is None else {"norm_eps": epsilon}


def _falcon(stated: Stated, config: dict, names: set[str]) -> dict:
    if config["num_key_value_heads"] == 1:  # else rows are in an order that is not undone
        stated.own("tensor_data_layout")
    return {}


# what transformers' table lacks for an architecture: (stated, config so far, tensor names) -> more
EXTRA = {
    "llama": _llama,
    "phi3": _phi3,
    "gemma2": _gemma,
    "gemma3": _gemma,
    "starcoder2": _starcoder2,
    "gpt2": _gpt2,
    "qwen2moe": _experts,
    "qwen3moe": _experts,
    "nemotron": _nemotron,
    "falcon": _falcon,
}
