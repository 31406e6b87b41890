"""A model's files -> proof that they are a model which loads and answers, before it is studied."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from layercal import InputError
from layercal.model import loading
from layercal.model.lens_model import LensModel

log = logging.getLogger("layercal")
TEXT = "What is 2 + 2?\nA. 3\nB. 4\nAnswer:"


def prove(folder: Path, trust_remote_code: bool = False) -> None:
    """Load tokenizer and weights, run one short prompt, and compare the lens with the model.

    Weights in bfloat16 or float32 are read as such: they are mapped into memory then and not
    copied, whatever their size. All others become bfloat16 (in float16 some models overflow).
    Where memory is too small, names and shapes are compared without a run, and the log says so.

    Parameters
    ----------
    folder : path
        In transformers' layout.
    trust_remote_code : bool
        Run Python code that comes with the model.

    Raises
    ------
    InputError
        Naming the files or the tensors at fault.
    """
    loading.check_files(folder)
    if "quantization_config" in json.loads((folder / "config.json").read_text()):
        loading.tokenizer(folder, trust_remote_code)
        log.warning("not run here: its weights are quantised, and the code for that wants a GPU")
        return
    tensors = [tensor for path in folder.glob("*.safetensors") for tensor in _header(path)]
    stored = torch.float32 if {tensor["dtype"] for tensor in tensors} == {"F32"} else torch.bfloat16
    needed, free = _memory(tensors, stored), free_memory()
    place = "cpu" if needed < free else "meta"
    model = loading.causal_model(folder, stored, place, trust_remote_code=trust_remote_code)
    tokenizer = loading.tokenizer(folder, trust_remote_code)
    input_ids = _trial_prompt(folder, tokenizer, model)
    if place == "cpu":
        _answer(folder, model, input_ids)
    else:
        log.warning(
            "its tensors are those of its config, but no prompt was run through it: that takes "
            "%.1f GB of memory, and %.1f GB are free",
            needed / 1e9,
            free / 1e9,
        )


def _trial_prompt(
    folder: Path, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel
) -> Tensor:
    """Token ids of a short prompt, all of which the model has an embedding of; (tokens,)."""
    input_ids = tokenizer(TEXT)["input_ids"]
    if len(set(input_ids) - set(tokenizer.all_special_ids)) < 2:
        raise InputError(
            f"{folder}: its tokenizer turns {TEXT!r} into {input_ids}, so its vocabulary is not "
            "there; copy all files of the one that the model was trained with"
        )
    rows = len(model.get_input_embeddings().get_parameter("weight"))
    beyond = {token: id for token, id in tokenizer.get_vocab().items() if id >= rows}
    added, template = tokenizer.get_added_vocab(), str(tokenizer.chat_template)
    needed = [token for token in beyond if token not in added or token in template]
    if needed:
        raise InputError(
            f"{folder}: its tokenizer has {len(beyond)} token(s) beyond the {rows} that the model "
            f"has embeddings of, such as {needed[0]!r} ({beyond[needed[0]]}); take the tokenizer "
            "that it was trained with, or resize the embeddings and train those of the new tokens"
        )
    if beyond:
        log.info("tokens without an embedding, which no prompt may hold: %s", [*beyond][:5])
    return torch.tensor(input_ids)


def _answer(folder: Path, model: PreTrainedModel, input_ids: Tensor) -> None:
    """Run a prompt: finite logits, and the same through the lens at the last layer."""
    try:
        with torch.inference_mode():
            logits = model(input_ids=input_ids[None], use_cache=False).logits
    except Exception as error:  # the model's own code may fail in any way
        raise InputError(
            f"{folder}: {type(model).__name__} cannot run a prompt of {len(input_ids)} tokens: "
            f"{loading.first_words(error)}"
        ) from error
    if not logits.isfinite().all():
        damaged = [name for name, part in model.named_parameters() if not part.isfinite().all()]
        raise InputError(
            f"{folder}: its logits are NaN or infinite, and so are entries of "
            f"{', '.join(damaged[:4]) or 'none of its weights'}; get the weights again"
        )
    try:
        LensModel(model).check_gate(input_ids)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error


def _header(path: Path) -> list[dict]:
    """Dtype, shape and place of the tensors in a safetensors file."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return list(header.values())


def _memory(tensors: list[dict], dtype: torch.dtype) -> int:
    """Bytes that a model takes beside its mapped files: what is converted, and a float32 head."""
    name = {torch.float32: "F32", torch.bfloat16: "BF16"}[dtype]
    sizes = [torch.Size(tensor["shape"]).numel() for tensor in tensors]
    converted = [n for n, tensor in zip(sizes, tensors, strict=True) if tensor["dtype"] != name]
    return dtype.itemsize * sum(converted) + 4 * max(sizes)


def free_memory(system: Path = Path("/")) -> float:
    """Bytes that this process may still take: of the machine, or of the job that it is part of.

    Parameters
    ----------
    system : path
        Root of the file system that holds ``proc`` and ``sys``; without them (no Linux), the
        machine's whole memory is the answer.
    """
    about = system / "proc/meminfo"
    if not about.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    machine = 1024 * int(re.findall(r"MemAvailable: +(\d+)", about.read_text())[0])
    return min([machine, *_left_in_groups(system)])


def _left_in_groups(system: Path) -> Iterator[int]:
    """What the control groups of this process leave it (version 1 or 2), the files mapped apart."""
    for line in (system / "proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = system / "sys/fs/cgroup" / ("memory" if controllers else "")
        limit, used = ("limit_in_bytes", "rss") if controllers else ("max", "anon")
        group = root / path.lstrip("/")
        for folder in [group, *group.parents]:
            said = folder / f"memory.{limit}"
            if said.exists() and (most := said.read_text().strip()) != "max":
                counts = dict(
                    row.split() for row in (folder / "memory.stat").read_text().splitlines()
                )
                yield int(most) - int(counts[used])
