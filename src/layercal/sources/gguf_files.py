"""A GGUF file -> a model folder in transformers' layout that gives the numbers the file gives."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layercal import InputError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


# raised whenever a file would come out otherwise: what an older version converted is not used again
CONVERSION = 2


def convert_gguf(gguf: Path, folder: Path) -> None:
    """Turn a quantised GGUF file into dense bfloat16 safetensors with config and tokenizer.

    Parameters
    ----------
    gguf : path
    folder : path
        Filled in transformers' layout.

    Raises
    ------
    InputError
        As :func:`load_gguf` and :func:`layercal.sources.gguf_tokenizer.read_tokenizer`.
    """
    import torch

    from layercal.sources import gguf_tokenizer

    tokenizer = gguf_tokenizer.read_tokenizer(gguf)
    load_gguf(gguf, torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_gguf(gguf: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Load a GGUF file's model, its weights dequantised in float32 and then rounded.

    Parameters
    ----------
    gguf : path
        Alone in its folder: transformers prefers configs that lie beside it.
    dtype : torch.dtype

    Raises
    ------
    InputError
        If the file says something that transformers would pass over, as
        :func:`layercal.sources.gguf_config.read_config` says, or weights are missing or do not fit:
        transformers would only warn and draw them at random.
    """
    from transformers import AutoModelForCausalLM, GgufConfig

    from layercal.sources import gguf_config

    loaded: Any = AutoModelForCausalLM.from_pretrained(
        gguf.parent,
        gguf_file=gguf.name,
        config=gguf_config.read_config(gguf),
        dtype=dtype,
        quantization_config=GgufConfig(dequantize=True),
        ignore_mismatched_sizes=True,  # they are refused below, by name
        output_loading_info=True,
    )
    model, found = loaded
    for problem, names in (
        ("it lacks", found["missing_keys"]),
        ("of another shape than its config says:", {key for key, *_ in found["mismatched_keys"]}),
        ("without a place in the model:", found["unexpected_keys"]),
    ):
        if names:
            raise InputError(f"{gguf.name}: {problem} {', '.join(sorted(names))}")
    return model
