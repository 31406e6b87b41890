"""What a tokenizer does before the first word: sentencepiece's space, and the BOS token."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from tokenizers import pre_tokenizers
from transformers import PreTrainedTokenizerBase

from layercal import InputError

log = logging.getLogger("layercal")
SAMPLE = "The following are multiple choice questions.\n\nWhat is 12 + 30?\nA. 42\nAnswer: A"


def match_sentencepiece(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Make a tokenizer that was read from ``tokenizer.model`` alone cut text as that file does.

    transformers forgets, for some architectures, the space that sentencepiece sets before a text.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
        Changed in place, if need be.
    folder : path
        Where it was read from.

    Raises
    ------
    InputError
        If it cuts text in yet another way.
    """
    own = folder / "tokenizer.model"
    if not own.exists() or (folder / "tokenizer.json").exists():
        return
    from sentencepiece import SentencePieceProcessor

    try:
        expected = SentencePieceProcessor(model_file=str(own)).encode(SAMPLE)
    except RuntimeError:  # tiktoken's ranks bear the same name
        return
    if _plain(tokenizer) == expected:
        return
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
        prepend_scheme="first", split=False
    )
    if _plain(tokenizer) != expected:
        raise InputError(
            f"{own}: transformers' {type(tokenizer).__name__} does not cut text as this file does; "
            "put the model's tokenizer.json beside it"
        )
    log.info("%s: set the space before each text that transformers forgets", own)


def _plain(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return tokenizer(SAMPLE, add_special_tokens=False)["input_ids"]


def log_beginnings(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]]) -> None:
    """Say how prompts begin, and whether a BOS token that the tokenizer has is in none.

    Parameters
    ----------
    tokenizer : transformers.PreTrainedTokenizerBase
    prompts : sequence of token lists
    """
    log.info("prompts begin with %s", tokenizer.convert_ids_to_tokens(list(prompts[0][:4])))
    bos = tokenizer.bos_token_id
    if bos is None or any(ids[0] == bos for ids in prompts):
        return
    meant = tokenizer.init_kwargs.get("add_bos_token") is False
    log.log(
        logging.INFO if meant else logging.WARNING,
        "no prompt begins with the tokenizer's BOS token, %s%s",
        tokenizer.bos_token,
        "; its config says so"
        if meant
        else ": a model that learned to start from it answers "
        "worse without; add it in a template of your own if this one did",
    )
