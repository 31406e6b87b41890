"""Any decoder-only causal language model seen as embed -> blocks -> final norm -> unembed.

Everything downstream speaks of the residual stream ``h[l]`` at the answer position (the last
prompt token): ``h[0]`` is what enters the first block, ``h[l]`` what leaves block ``l``, **before**
the final norm. transformers' own ``hidden_states[-1]`` is already normed, so the stream is captured
by hooks on the blocks.

No family is known by name. Blocks are found by structure; what follows the last block (norm,
projection) is seen in one short run of the model; head, logit scaling and soft-capping are the
model's own code, run on top of that. :meth:`LensModel.check_gate` proves the result.
"""

from __future__ import annotations

import importlib
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, PreTrainedModel

from layercal import InputError
from layercal.model import architecture, loading
from layercal.model.passes import ROUNDING, Passes

# largest allowed difference between the lens at L and the model's own logits, by model dtype
GATE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.25}


class LensModel(Passes):
    """A causal language model whose residual stream can be read and changed at any layer.

    Parameters
    ----------
    model : transformers.PreTrainedModel
        A decoder-only model with a stack of blocks, a final norm and an unembedding head.

    Raises
    ------
    InputError
        If the model has another shape.
    """

    def __init__(self, model: PreTrainedModel):
        architecture.check_kind(model)
        super().__init__(model)
        self.head = model.get_output_embeddings()
        if not isinstance(self.head, nn.Linear):
            raise InputError(f"{type(model).__name__}: no linear unembedding head found")
        self.readout = self._trial_run()
        names = {module: name for name, module in model.named_modules()}
        self.paths = names[self.decoder], names[self.head]
        self.unembedding = self._on_readout(architecture.as_float32(self.head))

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
        return self._project(self.unembedding, h)

    def option_logits(
        self, h: Tensor, option_ids: Tensor, frozen_at: Tensor | None = None
    ) -> Tensor:
        """Project residuals onto the option tokens only; gradients flow where ``h`` asks for them.

        Parameters
        ----------
        h : Tensor, shape (..., d)
        option_ids : Tensor, shape (n_options,)
            Token ids of the option letters.
        frozen_at : Tensor, shape (..., d), optional
            Residuals whose scale the final norm divides by instead of that of ``h``, so that a
            vector added to them cannot act by growing the norm; broadcast against ``h``.

        Returns
        -------
        Tensor, shape (..., n_options)
            The columns ``option_ids`` of :meth:`unembed`, without computing the others.
        """
        rows = nn.Linear(self.head.in_features, len(option_ids), self.head.bias is not None)
        option_ids = option_ids.to(self.head.weight.device)
        rows.weight = nn.Parameter(self.head.weight[option_ids].float(), requires_grad=False)
        if self.head.bias is not None:
            rows.bias = nn.Parameter(self.head.bias[option_ids].float(), requires_grad=False)
        if frozen_at is not None:
            stretch = self.norm_scale(h) / self.norm_scale(frozen_at)
            self.readout.stretch = stretch.expand(h.shape[:-1]).reshape(1, -1, 1)
        try:
            return self._project(self._on_readout(rows), h)
        finally:
            self.readout.stretch = None

    def norm_scale(self, h: Tensor) -> Tensor:
        """What the final norm divides a residual by: its root mean square, centred or not; (...).

        Parameters
        ----------
        h : Tensor, shape (..., d)
        """
        h = h.to(self.head.weight.device).float()
        if self.norm_map[2]:
            h = h - h.mean(-1, keepdim=True)
        return h.pow(2).mean(-1).sqrt()

    @cached_property
    def norm_map(self) -> tuple[Tensor, Tensor, bool]:
        """Gain (d,) and bias (d,) of the final norm, and whether it centres (LayerNorm)."""
        with torch.inference_mode():
            gain, bias, centred = self.readout.norm_map(self.width)
        return gain.clone(), bias.clone(), centred

    def _project(self, unembedding: nn.Module, h: Tensor) -> Tensor:
        h = h.to(self.head.weight.device).float()
        logits = unembedding(inputs_embeds=h.reshape(1, -1, h.shape[-1])).logits
        return logits.reshape(*h.shape[:-1], -1)

    @cached_property
    def parts(self) -> list[architecture.Parts]:
        """What writes on the stream in each block, found in one short run of the model.

        Raises
        ------
        InputError
            If the update of a block is not the sum of one attention and one MLP output.
        """
        entered: list[Tensor] = []
        left: list[Tensor] = []
        with ExitStack() as hooks:
            for block in self.blocks:
                for found, before in ((entered, True), (left, False)):
                    # copied, since a block may add in place
                    keep = partial(lambda found, h: found.append(h[0].clone()), found)
                    hooks.enter_context(architecture.hook(block, keep, before))
            calls = [hooks.enter_context(architecture.traced(block)) for block in self.blocks]
            with torch.inference_mode():
                ids = torch.arange(1, 5, device=self.device)[None]
                self._decode(ids, ids - 1, use_cache=False)
        runs = zip(self.blocks, calls, entered, left, strict=True)
        return [architecture.find_parts(*run, ROUNDING[self.dtype]) for run in runs]

    @cached_property
    def sequential(self) -> bool:
        """Whether the MLP of a block reads what its attention has written.

        Where both read what enters the block, there is no stream between them. Errors as of
        :attr:`parts`.
        """
        first, given = self.parts[0], []
        for factor in (1.0, 2.0):
            with (
                architecture.hook(first.attention, partial(torch.mul, other=factor)),
                architecture.hook(first.mlp, lambda hidden: given.append(hidden.clone())),
                torch.inference_mode(),
            ):
                ids = torch.arange(1, 5, device=self.device)[None]
                self._decode(ids, ids - 1, use_cache=False)
        return not torch.equal(*given)

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
        own = self.model(input_ids=input_ids, use_cache=False).logits[0, -1].float()
        lens = self.unembed(self.residuals(input_ids)[0, -1])
        if not own.isfinite().all():
            raise InputError(
                f"{type(self.model).__name__}: the model's own logits hold NaN or Inf in "
                f"{self.dtype}; try extract: dtype: float32, and check the weights if that was used"
            )
        difference = (own.to(lens.device) - lens).abs().max().item()
        if not difference <= GATE_TOLERANCE[self.dtype]:
            raise InputError(
                f"{type(self.model).__name__}: the lens at layer {self.n_layers} differs from the "
                f"model's own logits by {difference:.3g} (allowed: "
                f"{GATE_TOLERANCE[self.dtype]} in {self.dtype}). Its final norm, head or logit "
                "scaling is not read correctly, so no number of this model could be trusted."
            )
        return difference

    def _trial_run(self) -> architecture.Readout:
        """Run two tokens to see what the blocks give and what the model does after the last."""
        seen: list[nn.Module] = []
        left: list = []
        entering: list[Tensor] = []
        shapes: list[tuple] = []

        def note(module: nn.Module, args: tuple, output: Tensor | tuple[Tensor, ...]) -> None:
            seen.append(module)
            if module in blocks:
                self.block_output = type(output)
                shapes.append(tuple(architecture.hidden_states(output).shape))

        blocks = set(self.blocks)
        watched = [*self.blocks, *(m for m in self.decoder.children() if m is not self.blocks)]
        handles = [module.register_forward_hook(note) for module in watched]
        handles += [
            self.decoder.register_forward_hook(lambda module, args, output: left.append(output)),
            self.head.register_forward_pre_hook(lambda module, args: entering.append(args[0])),
        ]
        try:
            with torch.inference_mode():
                ids = torch.arange(2, device=self.device)[None]
                self.model(input_ids=ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        ran = [module for module in seen if module in blocks]
        if ran != list(self.blocks) or set(shapes) != {(1, 2, self.width)}:
            raise InputError(
                f"{type(self.model).__name__}: expected {self.n_layers} blocks that run once each, "
                f"in order, and give hidden states of width {self.width}; {len(ran)} ran and gave "
                f"shapes {sorted(set(shapes))}. It has no single residual stream to read."
            )
        after = seen[seen.index(self.blocks[-1]) + 1 :]
        if not any("norm" in type(module).__name__.lower() for module in after):
            raise InputError(
                f"{type(self.model).__name__}: no final norm after its last block, which the "
                "logit lens needs"
            )
        architecture.check_head(
            type(self.model).__name__,
            architecture.hidden_states(left[0]),
            entering[0],
            ROUNDING[self.dtype],
        )
        return architecture.Readout(after, type(left[0]))

    def _on_readout(self, head: nn.Module) -> nn.Module:
        """The model's own code on top of its decoder, with another head, in float32."""
        decoder, unembedding = self.paths
        return architecture.with_modules(self.model, {decoder: self.readout, unembedding: head})


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


def load(
    path: str | Path,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str = "none",
    trust_remote_code: bool = False,
) -> LensModel:
    """Load a model folder (config, safetensors) as a :class:`LensModel`.

    Weights are read straight onto their device; where several GPUs are there, a model is spread
    over them (accelerate's balanced device map).

    Parameters
    ----------
    path : path
        Folder in transformers' layout.
    dtype : {"auto", "float32", "bfloat16"}
    device : {"auto", "cpu", "cuda", "mps"}
    quantize : {"none", "8bit", "4bit"}
        Of the blocks' weights, by bitsandbytes; norms and head stay dense.
    trust_remote_code : bool
        Run Python code that comes with the model.

    Raises
    ------
    InputError
        If the folder holds no loadable causal language model, or other weights than its config
        asks for.
    """
    device = resolve_device(device)
    several = device == "cuda" and torch.cuda.device_count() > 1
    return LensModel(
        loading.causal_model(
            path,
            resolve_dtype(dtype, device),
            "balanced" if several else device,
            _quantization(quantize),
            trust_remote_code,
        )
    )


def _quantization(quantize: str) -> BitsAndBytesConfig | None:
    if quantize == "none":
        return None
    try:
        importlib.import_module("bitsandbytes")
    except ImportError as error:
        raise InputError(
            f"quantize: {quantize} needs the package bitsandbytes: pip install 'layercal[quantize]'"
        ) from error
    return BitsAndBytesConfig(load_in_8bit=quantize == "8bit", load_in_4bit=quantize == "4bit")
