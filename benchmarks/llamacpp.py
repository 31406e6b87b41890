"""Conversions of GGUF files against llama.cpp itself: tensors, tokens and answers.

    pip install --target llamacpp xllamacpp==2026.10.11549
    PYTHONPATH=llamacpp python benchmarks/llamacpp.py model.gguf other.gguf

The wheel's shared library exports llama.cpp's C interface. Of each file it checks that

* every tensor of its model is, before the rounding to bfloat16, bit for bit that of the file as
  llama.cpp's own Python package unpacks it;
* all prompts are cut into the same tokens: each question in its four rotations, and in the prompt
  of Joshi et al.;
* on some of them the log-probabilities of the letters are within ``TOLERANCE`` nats of llama.cpp's,
  and the likeliest token of all is the same. llama.cpp runs a float32 copy of the file, since its
  kernels for quantised weights round what they multiply to 8 bits.

Last it says by how much the rounding of the weights to bfloat16 moves the letters.
"""

import argparse
import ctypes
import tempfile
from ctypes import (
    POINTER,
    Structure,
    c_bool,
    c_char_p,
    c_float,
    c_int8,
    c_int32,
    c_size_t,
    c_uint32,
    c_void_p,
)
from pathlib import Path

import gguf
import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from layercal.prompts import templates
from layercal.sources import gguf_files, gguf_tokenizer

TOLERANCE = 1e-3


class ModelParams(Structure):
    """As ``struct llama_model_params`` of build 11549."""

    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        *((name, c_bool) for name in ("vocab_only", "check_tensors", "use_extra_bufts")),
        *((name, c_bool) for name in ("no_host", "no_alloc", "load_mtp")),
    ]


class ContextParams(Structure):
    """As ``struct llama_context_params`` of build 11549."""

    _fields_ = [
        *((name, c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        *((name, c_uint32) for name in ("n_outputs_max", "n_outputs_max_per_seq")),
        *((name, c_int32) for name in ("n_threads", "n_threads_batch", "ctx_type")),
        *((name, c_int32) for name in ("rope_scaling_type", "pooling_type", "attention_type")),
        ("flash_attn_type", c_int32),
        *((name, c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor")),
        *((name, c_float) for name in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("moe_cache_size", c_size_t),
        ("abort_callback", c_void_p),
        ("abort_callback_data", c_void_p),
        *((name, c_bool) for name in ("embeddings", "offload_kqv", "no_perf", "op_offload")),
        *((name, c_bool) for name in ("swa_full", "kv_unified")),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(Structure):
    """As ``struct llama_batch``."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


def library() -> ctypes.CDLL:
    """llama.cpp's C interface."""
    import xllamacpp

    found = ctypes.CDLL(next(str(path) for path in Path(xllamacpp.__file__).parent.glob("*.so")))
    for name, result, takes in (
        ("llama_model_default_params", ModelParams, []),
        ("llama_context_default_params", ContextParams, []),
        ("llama_model_load_from_file", c_void_p, [c_char_p, ModelParams]),
        ("llama_model_get_vocab", c_void_p, [c_void_p]),
        ("llama_vocab_n_tokens", c_int32, [c_void_p]),
        ("llama_init_from_model", c_void_p, [c_void_p, ContextParams]),
        ("llama_get_memory", c_void_p, [c_void_p]),
        ("llama_memory_clear", None, [c_void_p, c_bool]),
        ("llama_batch_get_one", Batch, [POINTER(c_int32), c_int32]),
        ("llama_decode", c_int32, [c_void_p, Batch]),
        ("llama_get_logits_ith", POINTER(c_float), [c_void_p, c_int32]),
    ):
        function = getattr(found, name)
        function.restype, function.argtypes = result, takes
    found.llama_tokenize.argtypes = [c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32]
    found.llama_tokenize.argtypes += [c_bool, c_bool]
    found.llama_backend_init()
    return found


class LlamaCpp:
    """A GGUF file run by llama.cpp on the CPU, keys and values kept in float32.

    Parameters
    ----------
    path : path
    vocab_only : bool
        Only cut text.
    context : int
        Tokens of the longest prompt.
    """

    def __init__(self, path: Path, vocab_only: bool = False, context: int = 2048):
        self.library = library()
        wanted = self.library.llama_model_default_params()
        wanted.vocab_only, wanted.n_gpu_layers = vocab_only, 0
        loaded = self.library.llama_model_load_from_file(str(path).encode(), wanted)
        if not loaded:
            raise SystemExit(f"{path}: llama.cpp cannot load it")
        self.vocab = self.library.llama_model_get_vocab(loaded)
        if vocab_only:
            return
        wanted = self.library.llama_context_default_params()
        wanted.n_ctx = wanted.n_batch = wanted.n_ubatch = context
        wanted.n_threads = wanted.n_threads_batch = 1  # more would wait for each other in a loop
        wanted.type_k = wanted.type_v = 0  # float32
        wanted.flash_attn_type = 0  # it would round the keys
        self.context = self.library.llama_init_from_model(loaded, wanted)

    def tokenize(self, text: str) -> list[int]:
        """Tokens, with those that the vocabulary adds."""
        said = text.encode()
        room = (c_int32 * (len(said) + 16))()
        n = self.library.llama_tokenize(self.vocab, said, len(said), room, len(room), True, True)
        return list(room[:n])

    def logits(self, ids: list[int]) -> torch.Tensor:
        """Logits behind the last token; (vocabulary)."""
        memory = self.library.llama_get_memory(self.context)
        self.library.llama_memory_clear(memory, True)
        tokens = (c_int32 * len(ids))(*ids)  # the batch points to them
        batch = self.library.llama_batch_get_one(tokens, len(ids))
        if self.library.llama_decode(self.context, batch):
            raise SystemExit("llama.cpp cannot run the prompt")
        found = self.library.llama_get_logits_ith(self.context, -1)
        size = self.library.llama_vocab_n_tokens(self.vocab)
        return torch.from_numpy(np.ctypeslib.as_array(found, (size,)).copy())


def float32_copy(path: Path, copy: Path) -> None:
    """Write a file anew with all its weights in float32."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(copy, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name != "general.architecture":
            kind, *of = field.types
            writer.add_key_value(name, field.contents(), kind, *of)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def as_read(name: str, rows: np.ndarray, config) -> np.ndarray:
    """Undo what llama.cpp's scripts do to the weights of some architectures."""
    heads = {"attn_q.weight": config.num_attention_heads}
    heads["attn_k.weight"] = config.num_key_value_heads
    for ending in heads if config.model_type == "llama" else ():
        if name.endswith(ending):
            pairs = rows.reshape(heads[ending], -1, 2, rows.shape[-1])
            return pairs.swapaxes(1, 2).reshape(rows.shape)
    if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
        return rows - np.float32(1)
    return rows


def compare_tensors(path: Path) -> str:
    """Each tensor of the file with the model's, in float32."""
    model = gguf_files.load_gguf(path, torch.float32)
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, model.config.num_hidden_layers)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    unread, equal = set(stored), 0
    for name, weight in model.named_parameters():
        own = names.get_name(name, try_suffixes=[".weight", ".bias"])
        rows = gguf.dequantize(stored[own].data, stored[own].tensor_type)
        rows = as_read(own, rows, model.config)
        assert np.array_equal(rows.view(np.int32), weight.detach().numpy().view(np.int32)), name
        unread.discard(own)
        equal += 1
    assert not unread, unread
    kept = torch.cat([one.flatten() for one in model.parameters() if one.ndim == 1]).double()
    gains = kept + model.config.model_type.startswith("gemma")
    moved = (kept.bfloat16().double() - kept).abs() / gains.abs().clamp(min=1e-9)
    tied = "tied" if model.config.tie_word_embeddings else "untied"
    return (
        f"{equal} tensors, all bit-equal; {tied}; bfloat16 moves {(moved > 0).float().mean():.0%} "
        f"of the norms' gains, by at most {moved.max():.2%}"
    )


def texts_of(questions: Path) -> list[str]:
    """Each question in its four rotations, then each in the prompt of Joshi et al."""
    rows = pd.read_parquet(questions).to_dict("records")
    turned = [
        {**row, "choices": [*row["choices"][by:], *row["choices"][:by]]}
        for by in range(4)
        for row in rows
    ]
    return [*map(templates.hendrycks, turned), *map(templates.joshi, rows)]


def compare_tokens(llama: LlamaCpp, tokenizer, texts: list[str]) -> str:
    """Tokens of all prompts."""
    differ = [one for one in texts if llama.tokenize(one) != tokenizer(one)["input_ids"]]
    assert not differ, f"{len(differ)} of {len(texts)} prompts, as {differ[0]!r}"
    return f"{len(texts)} prompts, all of the same tokens"


def last_logits(model, prompts: list[list[int]]) -> torch.Tensor:
    """Log-probabilities behind each prompt; (n, vocabulary)."""
    with torch.inference_mode():
        found = [model(torch.tensor([ids])).logits[0, -1] for ids in tqdm(prompts, disable=None)]
    return torch.stack(found).log_softmax(-1)


def compare_answers(llama: LlamaCpp, path: Path, tokenizer, texts: list[str]) -> str:
    """Letters and likeliest tokens, of the file's weights and of the rounded ones."""
    letters = [tokenizer.encode(f" {one}", add_special_tokens=False)[0] for one in "ABCD"]
    ids = [tokenizer(text)["input_ids"] for text in texts]
    other = torch.stack([llama.logits(one) for one in ids]).log_softmax(-1)
    model = gguf_files.load_gguf(path, torch.float32).eval()
    own = last_logits(model, ids)
    largest = (own - other)[:, letters].abs().max()
    assert largest <= TOLERANCE, largest
    assert torch.equal(own.argmax(-1), other.argmax(-1))
    for weight in model.parameters():
        weight.data = weight.bfloat16().float()
    rounded = last_logits(model, ids)
    moved = (rounded - other)[:, letters].abs()
    same = (rounded.argmax(-1) == other.argmax(-1)).sum()
    return (
        f"letters of {len(texts)} prompts within {largest:.0e} nats, same likeliest token in all; "
        f"rounding to bfloat16 moves letters by {moved.median():.3f} in the median and at most "
        f"{moved.max():.3f} nats, and keeps the likeliest token in {same}"
    )


def main() -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("files", nargs="+", type=Path)
    made.add_argument("--questions", type=Path, default="resources/questions/mmlu-dev.parquet")
    made.add_argument("--answers", type=int, default=24, help="prompts that run")
    args = made.parse_args()
    texts = texts_of(args.questions)
    some = texts[:: len(texts) // args.answers][: args.answers]
    for path in args.files:
        with tempfile.TemporaryDirectory() as scratch:
            alone, copy = (Path(scratch) / name for name in ("alone/a.gguf", "float32"))
            alone.parent.mkdir()
            alone.symlink_to(path.resolve())
            print(f"{path.name}: {compare_tensors(alone)}", flush=True)
            tokenizer = gguf_tokenizer.read_tokenizer(alone)
            float32_copy(path, copy)
            llama = LlamaCpp(copy)
            print(f"{path.name}: {compare_tokens(llama, tokenizer, texts)}", flush=True)
            print(f"{path.name}: {compare_answers(llama, alone, tokenizer, some)}", flush=True)


if __name__ == "__main__":
    main()
