"""Any decoder-only causal language model seen as embed -> blocks -> final norm -> unembed.

Everything downstream speaks of the residual stream ``h[l]`` at the answer position (the last
prompt token): ``h[0]`` is what enters the first block, ``h[l]`` what leaves block ``l``, **before**
the final norm. transformers' own ``hidden_states[-1]`` is already normed, so the stream is captured
by hooks on the blocks.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, DynamicCache

from layercal import InputError

# largest allowed difference between the lens at L and the model's own logits, by model dtype
GATE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.25}


@dataclass
class Prefix:
    """A prompt that has run once: the cache of all its tokens but the last, and its residuals.

    Attributes
    ----------
    cache : DynamicCache
        Keys and values of tokens ``0 .. length - 1``.
    length : int
        Number of cached tokens; also the position id of the answer token.
    residuals : Tensor, shape (L + 1, d)
        Unsteered residual stream at the answer position.
    """

    cache: DynamicCache
    length: int
    residuals: Tensor


class LensModel:
    """A causal language model whose residual stream can be read and changed at any layer.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A decoder-only model with a stack of blocks, a final norm and an unembedding head.

    Attributes
    ----------
    n_layers : int
        Number of blocks, L.
    width : int
        Width of the residual stream, d.

    Raises
    ------
    InputError
        If blocks, final norm or head cannot be found.
    """

    def __init__(self, model):
        self.model = model.eval().requires_grad_(False)
        self.decoder = model.get_decoder()
        self.blocks = _find_blocks(self.decoder, model.config)
        self.n_layers = len(self.blocks)
        self.width = model.config.hidden_size
        # the lens reads in float32 whatever the model's dtype
        self.norm = copy.deepcopy(_find_final_norm(self.decoder)).float()
        self.head = _float32_head(model)

    @property
    def device(self) -> torch.device:
        """Where the model's parameters live."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the blocks run."""
        return self.model.dtype

    @torch.inference_mode()
    def residuals(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Read the residual stream at the last real token of each row, at all layers.

        Parameters
        ----------
        input_ids : Tensor, shape (batch, tokens)
        attention_mask : Tensor, shape (batch, tokens), optional
            1 for real tokens, 0 for padding on either side; all real if left out.

        Returns
        -------
        Tensor, shape (batch, L + 1, d)
            In the model's dtype; index 0 is the embedding output, L precedes the final norm.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        input_ids, mask = input_ids.to(self.device), attention_mask.to(self.device)
        last = (mask * torch.arange(mask.shape[1], device=mask.device)).argmax(-1)
        with self._capture(last) as captured:
            self.decoder(
                input_ids=input_ids,
                attention_mask=mask,
                position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
                use_cache=False,
            )
        return torch.stack(captured, 1)

    @torch.inference_mode()
    def unembed(self, h: Tensor) -> Tensor:
        """Read residuals through final norm and head: at layer L exactly the model's own logits.

        Parameters
        ----------
        h : Tensor, shape (..., d)

        Returns
        -------
        Tensor, shape (..., vocabulary)
            float32 logits; each vector is normed with its own statistics.
        """
        return self.head(self.norm(h.to(self.device).float()))

    @torch.inference_mode()
    def option_logits(self, h: Tensor, option_ids: Tensor) -> Tensor:
        """Project residuals onto the option tokens only.

        Parameters
        ----------
        h : Tensor, shape (..., d)
        option_ids : Tensor, shape (n_options,)
            Token ids of the option letters.

        Returns
        -------
        Tensor, shape (..., n_options)
            The columns ``option_ids`` of :meth:`unembed`, without computing the others.
        """
        option_ids = option_ids.to(self.device)
        bias = None if self.head.bias is None else self.head.bias[option_ids]
        normed = self.norm(h.to(self.device).float())
        return nn.functional.linear(normed, self.head.weight[option_ids], bias)

    @torch.inference_mode()
    def prefix(self, input_ids: Tensor) -> Prefix:
        """Run one prompt once, so that its answer token can be run again in many changed forms.

        Parameters
        ----------
        input_ids : Tensor, shape (tokens,)
        """
        input_ids = input_ids.to(self.device)[None]
        cache = DynamicCache(config=self.model.config)
        last = torch.tensor([input_ids.shape[1] - 1], device=self.device)
        with self._capture(last) as captured:
            self.decoder(input_ids=input_ids, past_key_values=cache, use_cache=True)
        cache.crop(-1)
        return Prefix(cache, input_ids.shape[1] - 1, torch.cat(captured))

    @torch.inference_mode()
    def continue_from(self, prefix: Prefix, layer: int, h: Tensor) -> Tensor:
        """Run the blocks above a layer on changed residuals of the answer token.

        All S changed tokens go through the upper blocks in one masked pass: they share the
        position id of the answer token, and each attends to the prefix and to itself only.

        Parameters
        ----------
        prefix : Prefix
        layer : int
            The layer whose residual was changed; blocks ``layer + 1 .. L`` run.
        h : Tensor, shape (S, d)
            Residuals at ``layer``, one row per setting.

        Returns
        -------
        Tensor, shape (S, d)
            Residuals at layer L, before the final norm.
        """
        if layer == self.n_layers:
            return h
        size, past = len(h), prefix.length
        lowest = torch.finfo(self.dtype).min
        own = torch.full((size, size), lowest, dtype=self.dtype, device=self.device)
        seen = torch.zeros(size, past, dtype=self.dtype, device=self.device)
        mask = torch.cat([seen, own.fill_diagonal_(0)], 1)
        positions = torch.full((1, size), past, device=self.device)
        upper, captured = self.blocks[layer:], []
        handle = upper[-1].register_forward_hook(
            lambda module, args, output: captured.append(_hidden(output))
        )
        self.decoder.layers = upper
        try:
            self.decoder(
                inputs_embeds=h.to(self.device, self.dtype)[None],
                attention_mask=mask[None, None],
                position_ids=positions,
                past_key_values=prefix.cache,
                use_cache=True,
            )
        finally:
            self.decoder.layers = self.blocks
            handle.remove()
            for cached in prefix.cache.layers[layer:]:
                cached.crop(past - cached.get_seq_length())
        return captured[0][0]

    @torch.inference_mode()
    def check_gate(self, input_ids: Tensor) -> float:
        """Compare the lens at L with the model's own logits on one prompt.

        Parameters
        ----------
        input_ids : Tensor, shape (tokens,)

        Returns
        -------
        float
            Largest absolute difference over the vocabulary.

        Raises
        ------
        InputError
            If the difference exceeds ``GATE_TOLERANCE`` for the model's dtype.
        """
        input_ids = input_ids.to(self.device)[None]
        own = self.model(input_ids=input_ids, logits_to_keep=1).logits[0, -1].float()
        lens = self.unembed(self.residuals(input_ids)[0, -1])
        difference = (own - lens).abs().max().item()
        if not difference <= GATE_TOLERANCE[self.dtype]:
            raise InputError(
                f"{type(self.model).__name__}: the lens at layer {self.n_layers} differs from the "
                f"model's own logits by {difference:.3g} (allowed: "
                f"{GATE_TOLERANCE[self.dtype]} in {self.dtype}). Its final norm, head or logit "
                "scaling is not read correctly, so no number of this model could be trusted."
            )
        return difference

    @contextmanager
    def _capture(self, last: Tensor):
        """Collect the residual at position ``last`` of each row: L + 1 tensors (batch, d)."""
        captured: list[Tensor] = []

        def keep(hidden: Tensor):
            captured.append(hidden[torch.arange(len(hidden), device=hidden.device), last])

        def entering(module, args, kwargs):
            keep(args[0] if args else kwargs["hidden_states"])

        handles = [self.blocks[0].register_forward_pre_hook(entering, with_kwargs=True)]
        for block in self.blocks:
            handles.append(
                block.register_forward_hook(lambda module, args, output: keep(_hidden(output)))
            )
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()


def resolve_dtype(dtype: str, device: str) -> torch.dtype:
    """Name -> torch dtype; ``auto`` is bfloat16 where the hardware has units for it.

    Parameters
    ----------
    dtype : {"auto", "float32", "bfloat16"}
    device : str
        "cpu", "cuda" or "mps", as returned by :func:`resolve_device`.
    """
    if dtype != "auto":
        return getattr(torch, dtype)
    if device == "cpu":
        able = torch.cpu.get_capabilities()
        has_units = able.get("avx512_bf16") or able.get("amx_bf16")
    else:
        has_units = device == "mps" or torch.cuda.is_bf16_supported()
    return torch.bfloat16 if has_units else torch.float32


def resolve_device(device: str) -> str:
    """Name -> torch device; ``auto`` takes cuda, then mps, then cpu.

    Raises
    ------
    InputError
        If the device asked for is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        return next((name for name, found in there.items() if found), "cpu")
    if not there.get(device, True):
        raise InputError(f"device: {device} was asked for, but torch finds none; use auto or cpu")
    return device


def load(path: str | Path, dtype: str = "auto", device: str = "auto") -> LensModel:
    """Load a model folder (config, safetensors) as a :class:`LensModel`.

    Parameters
    ----------
    path : path
        Folder in transformers' layout.
    dtype : {"auto", "float32", "bfloat16"}
    device : {"auto", "cpu", "cuda", "mps"}

    Raises
    ------
    InputError
        If the folder holds no loadable causal language model.
    """
    device = resolve_device(device)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=resolve_dtype(dtype, device), local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: no causal language model that transformers can load: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return LensModel(model.to(device))


def _hidden(output) -> Tensor:
    """The hidden states in a block's output, which some families wrap in a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def _find_blocks(decoder: nn.Module, config) -> nn.ModuleList:
    blocks = getattr(decoder, "layers", None)
    if not isinstance(blocks, nn.ModuleList) or len(blocks) != config.num_hidden_layers:
        raise InputError(
            f"{type(decoder).__name__}: no stack of {config.num_hidden_layers} blocks named "
            "'layers' found; layercal reads decoder-only models of the Llama kind"
        )
    return blocks


def _find_final_norm(decoder: nn.Module) -> nn.Module:
    norms = [child for child in decoder.children() if "norm" in type(child).__name__.lower()]
    if len(norms) != 1:
        raise InputError(
            f"{type(decoder).__name__}: expected one final norm beside the blocks, found "
            f"{len(norms)}"
        )
    return norms[0]


def _float32_head(model) -> nn.Linear:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise InputError(f"{type(model).__name__}: no linear unembedding head found")
    return copy.deepcopy(head).float()
