"""Tiny random models of every family that layercal is proven on, for the tests."""

from functools import reduce

import gguf
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from layercal.model import architecture, recording

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
LATENT = {"kv_lora_rank": 16, "q_lora_rank": 16, "num_attention_heads": 2}
LATENT |= {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 8}

# family -> (path of its blocks, what its config needs beside SMALL)
FAMILIES = {
    "apertus": ("model.layers", {}),
    "arcee": ("model.layers", {}),
    "biogpt": ("biogpt.layers", {}),
    "bloom": ("transformer.h", {}),
    "codegen": ("transformer.h", {"rotary_dim": 4}),
    "cohere": ("model.layers", {"logit_scale": 0.3}),
    "cohere2": ("model.layers", {"logit_scale": 0.3, "sliding_window": 6}),
    "deepseek_v3": ("model.layers", {**LATENT, "first_k_dense_replace": 5}),
    "ernie4_5": ("model.layers", {}),
    "exaone4": ("model.layers", {}),
    "falcon": ("transformer.h", {}),
    "falcon-alibi": ("transformer.h", {"alibi": True}),
    "gemma": ("model.layers", {"head_dim": 8}),
    "gemma2": ("model.layers", {"head_dim": 8, "final_logit_softcapping": 5.0}),
    "gemma3_text": ("model.layers", {"head_dim": 8, "sliding_window": 6}),
    "glm": ("model.layers", {"head_dim": 8}),
    "glm4": ("model.layers", {"head_dim": 8}),
    "gpt2": ("transformer.h", {}),
    "gpt_bigcode": ("transformer.h", {}),
    "gpt_neo": ("transformer.h", {"attention_types": [[["global", "local"], 2], [["global"], 1]]}),
    "gpt_neox": ("gpt_neox.layers", {}),
    "gpt_oss": ("model.layers", {**EXPERTS, "head_dim": 8, "sliding_window": 6}),
    "gptj": ("transformer.h", {"rotary_dim": 4}),
    "granite": ("model.layers", {"logits_scaling": 3.0, "residual_multiplier": 0.7}),
    "helium": ("model.layers", {"head_dim": 8}),
    "llama": ("model.layers", {}),
    "llama4_text": (
        "model.layers",
        {
            "head_dim": 8,
            "num_local_experts": 4,
            "intermediate_size_mlp": 48,
            "moe_layers": [1, 3],
            "attention_chunk_size": 6,
        },
    ),
    "mistral": ("model.layers", {"sliding_window": 6}),
    "mixtral": ("model.layers", EXPERTS),
    "mpt": ("transformer.blocks", {}),
    "nemotron": ("model.layers", {}),
    "olmo": ("model.layers", {"clip_qkv": 3.0}),
    "olmo2": ("model.layers", {}),
    "olmo3": ("model.layers", {"sliding_window": 6}),
    "olmoe": ("model.layers", EXPERTS),
    "opt": ("model.decoder.layers", {"word_embed_proj_dim": 16}),
    "persimmon": ("model.layers", {}),
    "phi": ("model.layers", {}),
    "phi3": ("model.layers", {}),
    "qwen2": ("model.layers", {"tie_word_embeddings": True}),
    "qwen2_moe": ("model.layers", {**EXPERTS, "moe_intermediate_size": 16}),
    "qwen3": ("model.layers", {"head_dim": 8}),
    "qwen3_moe": ("model.layers", {**EXPERTS, "moe_intermediate_size": 16, "head_dim": 8}),
    "seed_oss": ("model.layers", {"head_dim": 8}),
    "smollm3": ("model.layers", {}),
    "stablelm": ("model.layers", {}),
    "starcoder2": ("model.layers", {}),
    "xglm": ("model.layers", {}),
}
# they build their own attention mask, so steered tokens run as rows of a batch
BATCHED = {"bloom", "falcon-alibi", "gpt_neo", "mpt"}
# with sliding windows of six tokens
WINDOWED = {"cohere2", "gemma3_text", "gpt_oss", "llama4_text", "mistral", "olmo3"}


def tiny(family: str, **settings):
    """A random model whose weights are large enough for its layers, biases and norms to matter."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family.removesuffix("-alibi")](
        **(SMALL | FAMILIES[family][1] | settings)
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, weight in model.float().named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.2)
        elif weight.ndim == 1:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
    return model


def blocks_of(model, family: str):
    """The model's blocks, by the path written down here."""
    return reduce(getattr, FAMILIES[family][0].split("."), model)


def write_gguf(path, model, tokenizer, without="none", states=(), factors=(), name="tiny"):
    """Write a model with the names, keys, shifts and row order that llama.cpp's scripts use.

    ``states`` are further keys of the architecture with their values, ``factors`` further tensors.
    """
    config, architecture = model.config, model.config.model_type.removesuffix("_text")
    writer = gguf.GGUFWriter(path, architecture.replace("_", ""))
    writer.add_name(name)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    gpt2 = architecture == "gpt2"
    writer.add_feed_forward_length(4 * config.hidden_size if gpt2 else config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_attention_heads if gpt2 else config.num_key_value_heads)
    epsilons = {"rms_norm_eps": writer.add_layer_norm_rms_eps}
    for name in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps"):
        epsilons[name] = writer.add_layer_norm_eps
    for name in epsilons.keys() & set(dir(config)):
        epsilons[name](getattr(config, name))
    writer.add_vocab_size(config.vocab_size)
    for key, value in dict(states).items():
        add = {bool: writer.add_bool, int: writer.add_uint32, str: writer.add_string}
        add |= {float: writer.add_float32, list: writer.add_array}
        add[type(value)](f"{writer.arch}.{key}", value)
    write_gguf_tokenizer(writer, tokenizer, config.vocab_size)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == writer.arch)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, weight in model.state_dict().items():
        if without in name or (tied and name == "lm_head.weight"):
            continue
        if name.endswith("experts.gate_up_proj"):
            place = name.split(".")[2]
            for part, rows in zip(("gate", "up"), weight.chunk(2, 1), strict=True):
                writer.add_tensor(f"blk.{place}.ffn_{part}_exps.weight", rows.numpy())
            continue
        gguf_name = names.get_name(name, try_suffixes=[".weight", ".bias"])
        gguf_name += ".weight" * name.endswith("experts.down_proj")
        writer.add_tensor(gguf_name, _as_llama_cpp_writes(name, weight, config))
    for name, values in dict(factors).items():
        writer.add_tensor(name, torch.tensor(values).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_gguf_tokenizer(writer, tokenizer, size):
    """Add a byte-level tokenizer."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(size)))
    writer.add_token_merges(["Ġ A"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _as_llama_cpp_writes(name, weight, config):
    rows, kind = weight.numpy(), config.model_type
    heads = {"q_proj": config.num_attention_heads}
    heads["k_proj"] = getattr(config, "num_key_value_heads", 0)
    for part in heads if kind == "llama" else ():
        if part in name:
            halves = rows.reshape(heads[part], 2, -1, *rows.shape[1:])
            rows = halves.swapaxes(1, 2).reshape(rows.shape)
    if kind.startswith(("gemma", "nemotron")) and name.endswith("norm.weight"):
        rows = rows + 1
    if kind == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        rows = rows.T.copy()
    return rows


def recorded(read, ids, mask=None):
    """``h[L]`` of a batch, (batch, d), and what is recorded while it runs."""
    mask = torch.ones_like(ids) if mask is None else mask
    with recording.recorded(read, architecture.answer_places(mask)) as found:
        h = read.residuals(ids, mask)[:, -1].float()
    return h, found
