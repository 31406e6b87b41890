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
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig, DynamicCache, PreTrainedModel

from layercal import InputError
from layercal.model import architecture, loading

# largest allowed difference between the lens at L and the model's own logits, by model dtype
GATE_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.25, torch.float16: 0.25}
# relative difference by which two ways to run the same blocks may differ by rounding
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


@dataclass
class Prefix:
    """A prompt that has run once: the cache of all its tokens but the last, and its residuals.

    Attributes
    ----------
    cache : DynamicCache
        Keys and values of tokens ``0 .. length - 1``.
    length : int
        Number of cached tokens; also the position id of the answer token.
    input_ids : Tensor, shape (1, length + 1)
        All tokens; the last one is the answer token.
    residuals : Tensor, shape (L + 1, d)
        Unsteered residual stream at the answer position.
    """

    cache: DynamicCache
    length: int
    input_ids: Tensor
    residuals: Tensor

    @property
    def in_window(self) -> bool:
        """Whether the prompt is shorter than every sliding window: no cached token is forgotten."""
        return fits_windows(self.cache, self.length + 1)


def fits_windows(cache: DynamicCache, tokens: int) -> bool:
    """Whether so many tokens are fewer than every sliding window of a cache holds."""
    windows = (getattr(layer, "sliding_window", None) for layer in cache.layers)
    return all(window is None or tokens < window for window in windows)


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
        If the model has another shape.
    """

    def __init__(self, model: PreTrainedModel):
        architecture.check_kind(model)
        self.model = model.eval().requires_grad_(False)
        config = model.config.get_text_config()
        self.decoder, self.blocks = architecture.find_decoder(model, config.num_hidden_layers)
        self.n_layers = len(self.blocks)
        self.width = config.hidden_size
        self.head = model.get_output_embeddings()
        if not isinstance(self.head, nn.Linear):
            raise InputError(f"{type(model).__name__}: no linear unembedding head found")
        takes = inspect.signature(self.decoder.forward).parameters
        self.takes_positions = "position_ids" in takes
        self.readout = self._trial_run()
        names = {module: name for name, module in model.named_modules()}
        self.paths = names[self.decoder], names[self.head]
        self.unembedding = self._on_readout(architecture.as_float32(self.head))

    @property
    def device(self) -> torch.device:
        """Where the model's first parameters live."""
        return self.model.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the blocks run."""
        return self.model.dtype

    @cached_property
    def border(self) -> int | None:
        """Most tokens of a prompt that runs with the short factors of longrope; None without.

        transformers chooses the factors of a whole pass by its last position, so that a pass must
        be on one side, and what is cached for a prompt must have been made on the prompt's.
        """
        return architecture.rope_border(self.model.config.get_text_config())

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
        with self._capture(architecture.answer_places(mask)) as captured:
            self._decode(
                input_ids, (mask.cumsum(-1) - 1).clamp(min=0), attention_mask=mask, use_cache=False
            )
        return torch.stack([h.to(self.device) for h in captured], 1)

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

    @torch.inference_mode()
    def prefix(self, input_ids: Tensor) -> Prefix:
        """Run one prompt once, so that its answer token can be run again in many changed forms.

        Parameters
        ----------
        input_ids : Tensor, shape (tokens,)
        """
        input_ids = input_ids.to(self.device)[None]
        past = input_ids.shape[1] - 1
        positions = torch.arange(past + 1, device=self.device)[None]
        cache = DynamicCache(config=self.model.config.get_text_config())
        found = Prefix(cache, past, input_ids, residuals=torch.empty(0))  # what follows reads them
        if found.in_window:
            with self._capture(torch.tensor([past])) as captured:
                self._decode(input_ids, positions, past_key_values=cache, use_cache=True)
            cache.crop(-1)
        elif past == self.border:
            raise InputError(
                f"a prompt of {past + 1} tokens cannot be steered in this model: its answer token "
                "is the first to run with the long factors of longrope, and its cache is windowed; "
                "show another number of shots"
            )
        else:  # a sliding cache forgets what the answer token pushes out: keep it out of the cache
            before, answer = slice(None, past), slice(past, None)
            self._decode(
                input_ids[:, before], positions[:, before], past_key_values=cache, use_cache=True
            )
            with self._capture(torch.tensor([0])) as captured:
                self._decode(
                    input_ids[:, answer],
                    positions[:, answer],
                    past_key_values=architecture.cache_view(cache),
                    use_cache=True,
                )
        found.residuals = torch.cat([h.to(self.device) for h in captured])
        return found

    @torch.inference_mode()
    def residuals_after(self, prefix: Prefix, tails: Sequence[Tensor]) -> Tensor:
        """:meth:`residuals` of prompts that begin alike, whose common beginning has run once.

        The tails run one after the other in one row, without padding; a mask lets each attend to
        the beginning and to itself only. For models and lengths of :meth:`takes_tails`.

        Parameters
        ----------
        prefix : Prefix
            Its cache holds the common tokens; its answer token is not used.
        tails : sequence of Tensor, shape (tokens,)
            What follows in each prompt, at least one token.

        Returns
        -------
        Tensor, shape (len(tails), L + 1, d)
        """
        own = torch.block_diag(*(torch.ones(len(one), len(one)).tril() for one in tails))
        positions = torch.cat([prefix.length + torch.arange(len(one)) for one in tails])
        with self._capture(architecture.last_of(tails)) as captured:
            self._decode_behind(prefix, torch.cat(list(tails)), positions, own)
        return torch.stack([h.to(self.device) for h in captured], 1)

    def takes_tails(self, tokens: int) -> bool:
        """Whether :meth:`residuals_after` is exact for prompts of up to so many tokens."""
        empty = DynamicCache(config=self.model.config.get_text_config())
        return self.takes_masked_pass and fits_windows(empty, tokens)

    @torch.inference_mode()
    def continue_from(self, prefix: Prefix, layer: int, h: Tensor) -> Tensor:
        """Run the blocks above a layer on changed residuals of the answer token.

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
        return self.pass_of(prefix)(prefix, layer, h)

    def pass_of(self, prefix: Prefix) -> Callable[[Prefix, int, Tensor], Tensor]:
        """The way in which changed answer tokens of a prompt run: masked if it can be."""
        masked = self.takes_masked_pass and prefix.in_window
        return self.masked_pass if masked else self.batched_pass

    @torch.inference_mode()
    def masked_pass(self, prefix: Prefix, layer: int, h: Tensor) -> Tensor:
        """:meth:`continue_from` with all S changed tokens in one row.

        They share the position id of the answer token, and a mask lets each attend to the prefix
        and to itself only.
        """
        answers = prefix.input_ids[0, -1:].expand(len(h))
        positions = torch.full((len(h),), prefix.length)
        with self._replace(layer, h[None]) as captured:
            self._decode_behind(prefix, answers, positions, torch.eye(len(h)))
        return captured[0][0].to(self.device)

    @torch.inference_mode()
    def batched_pass(self, prefix: Prefix, layer: int, h: Tensor, rows: int = 32) -> Tensor:
        """:meth:`continue_from` with each changed token in a row of its own.

        Exact wherever a cache is, since every row is an ordinary decoding step; slower than the
        masked pass, and the cache is copied ``rows`` times.
        """
        found = []
        for part in h.split(rows):
            cache = architecture.cache_view(prefix.cache)
            cache.batch_repeat_interleave(len(part))
            with self._replace(layer, part[:, None]) as captured:
                self._decode(
                    prefix.input_ids[:, -1:].expand(len(part), 1),
                    torch.full((len(part), 1), prefix.length, device=self.device),
                    attention_mask=torch.ones(
                        len(part), prefix.length + 1, dtype=torch.long, device=self.device
                    ),
                    past_key_values=cache,
                    use_cache=True,
                )
            found.append(captured[0][:, 0].to(self.device))
        return torch.cat(found)

    @cached_property
    def takes_masked_pass(self) -> bool:
        """Whether the masked pass equals ordinary decoding steps, found by trying both.

        An architecture that builds its own mask (ALiBi, local attention) does not take it: then
        nearly all changed tokens end elsewhere. Their median decides, since in bfloat16 single ones
        of so short a prompt are chaotic.
        """
        if "local" in getattr(self.model.config, "attention_layers", ()):
            return False
        with torch.inference_mode():
            prefix = self.prefix(torch.arange(1, 5))
            layer = min(1, self.n_layers - 1)
            h = prefix.residuals[layer]
            noise = torch.randn(16, self.width, generator=torch.Generator().manual_seed(0))
            changed = h + (noise * (h.float().norm() / self.width**0.5)).to(h)
            expected = self.batched_pass(prefix, layer, changed).float()
            try:
                found = self.masked_pass(prefix, layer, changed).float()
            except (ValueError, RuntimeError, TypeError, IndexError):
                return False
        difference = (found - expected).norm(dim=-1) / expected.norm(dim=-1)
        return bool(difference.median() <= ROUNDING[self.dtype])

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

    def _decode(self, input_ids: Tensor, positions: Tensor, **inputs: object) -> None:
        """Run the decoder, telling it the positions if it takes them."""
        if self.takes_positions:
            inputs["position_ids"] = positions
        self.decoder(input_ids=input_ids, **inputs)

    def _decode_behind(
        self, prefix: Prefix, input_ids: Tensor, positions: Tensor, own: Tensor
    ) -> None:
        """Run tokens in one row: each attends to a prefix, and to those of them ``own`` says."""
        seen = torch.cat([torch.ones(len(own), prefix.length), own], 1).to(self.device, torch.bool)
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(~seen, torch.finfo(self.dtype).min)
        self._decode(
            input_ids[None].to(self.device),
            positions[None].to(self.device),
            attention_mask=mask[None, None],
            past_key_values=architecture.cache_view(prefix.cache),
            use_cache=True,
        )

    @contextmanager
    def _capture(self, places: Tensor) -> Iterator[list[Tensor]]:
        """Collect residuals at places, counted over all rows: L + 1 tensors (places, d)."""
        captured: list[Tensor] = []

        def keep(hidden: Tensor) -> None:
            captured.append(hidden.flatten(0, 1)[places.to(hidden.device)])

        with ExitStack() as hooks:
            hooks.enter_context(architecture.hook(self.blocks[0], keep, before=True))
            for block in self.blocks:
                hooks.enter_context(architecture.hook(block, keep))
            yield captured

    @contextmanager
    def _replace(self, layer: int, h: Tensor) -> Iterator[list[Tensor]]:
        """Let blocks up to ``layer`` pass through, feed ``h`` into the next; collect h[L]."""
        captured: list[Tensor] = []
        with ExitStack() as hooks:
            for block in self.blocks[:layer]:
                hooks.enter_context(architecture.passed_through(block, self.block_output))
            hooks.enter_context(
                architecture.hook(self.blocks[layer], lambda hidden: h.to(hidden), before=True)
            )
            hooks.enter_context(architecture.hook(self.blocks[-1], captured.append))
            yield captured

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

    @torch.inference_mode()
    def streams(self, input_ids: Tensor, layers: Sequence[int]) -> Tensor:
        """Read one prompt's residual stream at every position, at the layers asked for.

        Parameters
        ----------
        input_ids : Tensor, shape (tokens,)
        layers : sequence of int
            From 0 (the embedding output) to L, in any order.

        Returns
        -------
        Tensor, shape (len(layers), tokens, d)
            In the model's dtype.
        """
        input_ids = input_ids[None]
        shape = (len(layers), input_ids.shape[1], self.width)
        found = torch.empty(shape, dtype=self.dtype, device=self.device)
        with ExitStack() as hooks:
            for layer, stream in zip(layers, found, strict=True):
                hooks.enter_context(self._copy_into(stream, layer))
            self._decode_all(input_ids)
        return found

    @torch.inference_mode()
    def continue_all(self, input_ids: Tensor, layer: int, h: Tensor) -> Tensor:
        """Run the blocks above a layer on residuals changed at every position.

        All settings run as rows of one batch: the caller bounds memory by how many it passes.

        Parameters
        ----------
        input_ids : Tensor, shape (tokens,)
        layer : int
            The layer whose residuals were changed; blocks ``layer + 1 .. L`` run.
        h : Tensor, shape (S, tokens, d)
            Residuals at ``layer``, one row per setting.

        Returns
        -------
        Tensor, shape (S, d)
            Residuals of the last token at layer L, before the final norm.
        """
        if layer == self.n_layers:
            return h[:, -1]
        with self._replace(layer, h) as captured:
            self._decode_all(input_ids.expand(len(h), -1))
        return captured[0][:, -1].to(self.device)

    def _copy_into(self, stream: Tensor, layer: int) -> AbstractContextManager[None]:
        """Copy the residuals of the only row at a layer into ``stream``, (tokens, d)."""

        def keep(hidden: Tensor) -> None:
            stream.copy_(hidden[0])

        block = self.blocks[max(layer, 1) - 1]
        return architecture.hook(block, keep, before=layer == 0)

    def _decode_all(self, input_ids: Tensor) -> None:
        """Run the decoder on rows without padding, (batch, tokens), keeping no cache."""
        input_ids = input_ids.to(self.device)
        mask = torch.ones_like(input_ids)
        self._decode(input_ids, mask.cumsum(-1) - 1, attention_mask=mask, use_cache=False)


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
