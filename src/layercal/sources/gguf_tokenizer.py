r"""The tokenizer that a GGUF file describes, cutting text as llama.cpp cuts it.

transformers knows some names of pre-tokenizers and gives every other file GPT-2's split in silence.
Here each name has its patterns, which cut one after the other (``llama-vocab.cpp``; the families'
own ``tokenizer.json`` say the same), and a name without any is refused.
"""

from __future__ import annotations

import logging
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.integrations.gguf import read_gguf_metadata
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from layercal import InputError

log = logging.getLogger("layercal")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
QWEN2 = GGUF_PRE_TOKENIZER_SPLITS["qwen2"]
CJK = "[一-龥ࠀ-一가-퟿]+"
WORDS = " ?[^(\\s|.,!?…。，、।۔،)]+"
DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
# names that share their patterns -> the patterns
CUTS = {
    "gpt-2 phi-2 jina-es jina-de jina-v2-es jina-v2-de gigachat a.x-4.0 mellum modern-bert mpt "
    "olmo jais trillion granite-docling exaone4": (GPT2,),
    "smollm starcoder refact command-r codeshell exaone minerva-7b mellum2": (r"\p{N}", GPT2),
    "stablelm2 hunyuan solar-open grok-2": (QWEN2,),
    "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
    "deepseek-llm": (
        r"[\r\n]",
        r"\s?[\p{Lu}\p{Ll}\p{Lt}]+",
        r"\s?[!-/:-~！-／：-～‘-‟　-。]+",
        r"\s+$",
        CJK,
        r"\p{N}+",
    ),
    "deepseek-coder": (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK, r"\p{N}"),
    "deepseek-v3 hunyuan-dense joyai-llm": DEEPSEEK3,
    "poro-chat bloom gpt3-finnish": (WORDS,),
    "viking": (WORDS, r"\p{N}"),
    "bailingmoe bailingmoe2 llada-moe": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    "seed-coder": (
        CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+"
        r"|\s+(?!\S)|\s+",
    ),
}
PATTERNS: dict[str, tuple[str, ...]] = {
    name: (split,) for name, split in GGUF_PRE_TOKENIZER_SPLITS.items()
}
PATTERNS |= {name: cuts for names, cuts in CUTS.items() for name in names.split()}
# they begin with BOS unless the file says otherwise, and take a word that is a token as it is
AS_LLAMA3 = {"llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0"}
AS_LLAMA3 |= {"lfm2", "jina-v5-nano", "tekken"}
# sentencepiece vocabularies whose own tokenizer sets no space before the text
UNPREFIXED = {"gemma", "gemma2", "gemma3"}


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a GGUF file.

    Parameters
    ----------
    path : path

    Raises
    ------
    InputError
        If its pre-tokenizer is not known, or it wants a BOS token and names none.
    """
    said, _ = read_gguf_metadata(str(path))
    kind = said["tokenizer.ggml.model"]
    if kind == "gpt2":
        return _byte_level(path, said)
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    prefixed = kind == "llama" and said["general.architecture"] not in UNPREFIXED
    if prefixed and said.get("tokenizer.ggml.add_space_prefix") is False:
        _without_prefix(tokenizer.backend_tokenizer)
    return tokenizer


def _byte_level(path: Path, said: dict) -> PreTrainedTokenizerBase:
    """Byte-level BPE, whose text is cut before it is merged."""
    name = said.get("tokenizer.ggml.pre")
    if name is None:
        log.warning("%s: it names no pre-tokenizer; cut as llama.cpp does then", path.name)
        name = "default"
    if name not in PATTERNS:
        raise InputError(
            f"{path.name}: its pre-tokenizer {name!r} is not known, so its prompts would be cut "
            f"into other tokens than its model learned; known are {', '.join(sorted(PATTERNS))}. "
            "Use the model's safetensors and tokenizer.json"
        )
    more = {}
    if name in AS_LLAMA3 and "tokenizer.ggml.add_bos_token" not in said:
        if "tokenizer.ggml.bos_token_id" not in said:
            raise InputError(f"{path.name}: a {name} vocabulary begins with BOS, and it names none")
        more["add_bos_token"] = True
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, **more)
    tokenizer.backend_tokenizer.pre_tokenizer = _cutting(PATTERNS[name])
    tokenizer.backend_tokenizer.model.ignore_merges = name in AS_LLAMA3
    return tokenizer


def _cutting(patterns: tuple[str, ...]) -> pre_tokenizers.PreTokenizer:
    cuts = [pre_tokenizers.Split(Regex(each), behavior="isolated") for each in patterns]
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*cuts, spelled])


def _without_prefix(backend: Tokenizer) -> None:
    """Set no space before the text, and take none away when decoding."""
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = None
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
