"""A folder in transformers' layout -> its model and its tokenizer, or one clear refusal.

transformers draws at random what a checkpoint lacks and passes over what it holds beyond the model;
both are told in its own loading report, which decides here.
"""

from __future__ import annotations

import logging
import re
import textwrap
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from layercal import InputError
from layercal.files import TOKENIZER_FILES
from layercal.prompts import tokenizing

log = logging.getLogger("layercal")
LFS_POINTER = b"version https://git-lfs"
# masks and position tables that older checkpoints hold and models now compute
COMPUTED = re.compile(
    r"(attn|attention)\.(masked_)?bias$|\.causal_mask$|rotary\w*\.(inv_freq|cos_cached|sin_cached)$"
    r"|embed_positions\.weights$|position_ids$"
)


def causal_model(
    path: str | Path,
    dtype: torch.dtype,
    device_map: str = "cpu",
    quantization: BitsAndBytesConfig | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """Load a causal language model, every tensor of it from the folder's files.

    Parameters
    ----------
    path : path
    dtype : torch.dtype
    device_map : str
        A device, ``balanced`` over several, or ``meta`` for shapes without weights.
    quantization : BitsAndBytesConfig, optional
    trust_remote_code : bool

    Raises
    ------
    InputError
        If transformers cannot load it, or its weights are not those that its config asks for.
    """
    check_files(Path(path))
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            device_map=device_map,
            quantization_config=quantization,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            ignore_mismatched_sizes=True,  # told below, with their names
            output_loading_info=True,
        )
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # configs and files are checked with errors of many kinds
        raise InputError(
            f"{path}: no causal language model that transformers can load: {first_words(error)}"
        ) from error
    model, report = loaded
    refuse_misfits(path, model, report)
    return model


def tokenizer(path: str | Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer; it cuts text as a sentencepiece file alone does.

    Parameters
    ----------
    path : path
    trust_remote_code : bool

    Raises
    ------
    InputError
        If there is none, or transformers cannot load it or cuts text otherwise.
    """
    check_files(Path(path))
    if not trust_remote_code and not any(any(Path(path).glob(name)) for name in TOKENIZER_FILES):
        raise InputError(
            f"{path}: no tokenizer in it (tokenizer.json, tokenizer.model, or vocab.json with "
            "merges.txt); copy the files of the one that the model was trained with"
        )
    try:
        found = AutoTokenizer.from_pretrained(
            path, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:  # the tokenizers library raises bare exceptions
        raise InputError(
            f"{path}: no tokenizer that transformers can load: {first_words(error)}"
        ) from error
    tokenizing.match_sentencepiece(found, Path(path))
    return found


def check_files(folder: Path) -> None:
    """Refuse files that are not what their names say: pointers, and weights that are not whole.

    Parameters
    ----------
    folder : path

    Raises
    ------
    InputError
        Naming the files.
    """
    files = [path for path in sorted(folder.glob("*")) if path.is_file()]
    pointers = [path.name for path in files if _begins(path, LFS_POINTER)]
    if pointers:
        raise InputError(
            f"{folder}: {', '.join(pointers)}: Git LFS pointers still, not what they point to; run "
            "git lfs pull in the clone that they come from"
        )
    for path in files:
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt"):
                    pass
            except SafetensorError as error:
                raise InputError(
                    f"{path}: damaged or cut short ({error}); get the file again"
                ) from error


def _begins(path: Path, text: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(text)) == text


def refuse_misfits(where: str | Path, model: PreTrainedModel, report: dict) -> None:
    """Refuse a checkpoint that lacks tensors of a model, or holds others of it.

    Parameters
    ----------
    where : str or path
        For the message.
    model : transformers.PreTrainedModel
    report : dict
        transformers' loading report (``output_loading_info``).

    Raises
    ------
    InputError
        Naming the tensors and what to do.
    """
    missing, left = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    shapes = [
        f"{name} {tuple(found)} for {tuple(asked)}"
        for name, found, asked in sorted(report["mismatched_keys"])
    ]
    left = [name for name in left if not COMPUTED.search(name)]
    own = [name for name in left if _belongs(name, model)]
    if missing or shapes or own:
        found = {"lacks": missing, "holds beyond the model": own or left, "holds": shapes}
        said = "; it ".join(f"{verb} {_some(names)}" for verb, names in found.items() if names)
        raise InputError(
            f"{where}: its weights are not those that its config.json asks for: it {said}. "
            f"{_remedy(model, missing, left)}"
        )
    if left:
        log.info("not read, since they are no part of the language model: %s", _some(left))


def _belongs(name: str, model: PreTrainedModel) -> bool:
    """Whether a tensor's name is one of the language model and not of another part beside it."""
    inside = name.removeprefix(f"{model.base_model_prefix}.").split(".")[0]
    children = [*model.named_children(), *model.base_model.named_children()]
    return inside in {child for child, _ in children}


def _remedy(model: PreTrainedModel, missing: list[str], left: list[str]) -> str:
    wrapped = {name.removesuffix(asked) for name in left for asked in missing if name != asked}
    prefixes = sorted(prefix for prefix in wrapped if prefix.endswith(".") and prefix not in left)
    if prefixes:
        return (
            f"Its names begin with {prefixes[0]!r}, as torch.compile and other wrappers leave "
            "them: save the model that was wrapped"
        )
    head = model.get_output_embeddings()
    if missing == [f"{name}.weight" for name, module in model.named_modules() if module is head]:
        return (
            "Save it with its head, or say tie_word_embeddings: true in config.json if its head "
            "is its input embedding"
        )
    return "Correct config.json, or save the model again with save_pretrained"


def _some(names: list[str], most: int = 4) -> str:
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def first_words(error: Exception) -> str:
    """What an error says, for one line; its name where that does not say enough."""
    said = textwrap.shorten(str(error), 300, placeholder=" ...")
    return said if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {said}"
