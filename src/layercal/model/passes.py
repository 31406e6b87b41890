"""How a model's blocks are run: whole, behind a prompt that has run, or from a layer on.

Everything is read and changed by hooks on the blocks, so that the model's own code runs, whatever
its family.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from layercal import InputError
from layercal.model import architecture

# relative difference by which two ways to run the same blocks may differ by rounding
ROUNDING = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 1e-2}


@dataclass
class Prefix:
    """A prompt, its residuals and, once it has run, the cache of all its tokens but the last.

    Attributes
    ----------
    input_ids : Tensor, shape (1, length + 1)
        All tokens; the last one is the answer token.
    residuals : Tensor, shape (L + 1, d)
        Unsteered residual stream at the answer position.
    ran : DynamicCache, optional
        Keys and values of tokens ``0 .. length - 1``; None where only the residuals are known.
    """

    input_ids: Tensor
    residuals: Tensor
    ran: DynamicCache | None = None

    @property
    def length(self) -> int:
        """Number of tokens before the answer token; also the position id of that."""
        return self.input_ids.shape[1] - 1

    @property
    def cache(self) -> DynamicCache:
        """What blocks run behind."""
        if self.ran is None:
            raise ValueError("this prompt has not run, so that nothing can run behind it")
        return self.ran

    @property
    def in_window(self) -> bool:
        """Whether the prompt is shorter than every sliding window: no cached token is forgotten."""
        return fits_windows(self.cache, self.length + 1)


def fits_windows(cache: DynamicCache, tokens: int) -> bool:
    """Whether so many tokens are fewer than every sliding window of a cache holds."""
    windows = (getattr(layer, "sliding_window", None) for layer in cache.layers)
    return all(window is None or tokens < window for window in windows)


class Passes:
    """A stack of blocks that can be run, and whose residual stream can be read and changed.

    Parameters
    ----------
    model : transformers.PreTrainedModel

    Attributes
    ----------
    n_layers : int
        Number of blocks, L.
    width : int
        Width of the residual stream, d.
    block_output : type
        What a block gives: the stream alone, or a tuple that begins with it.
    """

    block_output: type

    def __init__(self, model: PreTrainedModel):
        self.model = model.eval().requires_grad_(False)
        config = model.config.get_text_config()
        self.decoder, self.blocks = architecture.find_decoder(model, config.num_hidden_layers)
        self.n_layers = len(self.blocks)
        self.width = config.hidden_size
        self.takes_positions = "position_ids" in inspect.signature(self.decoder.forward).parameters

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
        if fits_windows(cache, past + 1):
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
        return Prefix(input_ids, torch.cat([h.to(self.device) for h in captured]), cache)

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

    def _decode_all(self, input_ids: Tensor) -> None:
        """Run the decoder on rows without padding, (batch, tokens), keeping no cache."""
        input_ids = input_ids.to(self.device)
        mask = torch.ones_like(input_ids)
        self._decode(input_ids, mask.cumsum(-1) - 1, attention_mask=mask, use_cache=False)

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

    def _copy_into(self, stream: Tensor, layer: int) -> AbstractContextManager[None]:
        """Copy the residuals of the only row at a layer into ``stream``, (tokens, d)."""

        def keep(hidden: Tensor) -> None:
            stream.copy_(hidden[0])

        block = self.blocks[max(layer, 1) - 1]
        return architecture.hook(block, keep, before=layer == 0)

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
