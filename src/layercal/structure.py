"""What a transformers model is made of: its blocks, what follows them, and ways into both.

Nothing here knows a family by name.
"""

from __future__ import annotations

import copy
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from layercal import InputError


class Readout(nn.Module):
    """Stands where the decoder stood: takes residuals and does what follows the last block.

    The final norm comes first (an RMSNorm or a LayerNorm of any make), then perhaps a projection.
    ``stretch``, where it is set, (..., 1), multiplies what the norm gives before its bias.
    """

    def __init__(self, after: list[nn.Module], output: type):
        super().__init__()
        self.output = output
        self.after = nn.ModuleList(as_float32(module) for module in after)
        self.stretch: Tensor | None = None

    def forward(self, *args, inputs_embeds: Tensor, **kwargs):
        """Return what the decoder would, had its last block given these residuals."""
        norm, *rest = self.after
        hidden = norm(inputs_embeds)
        if self.stretch is not None:
            bias = norm(torch.zeros_like(inputs_embeds[..., :1, :]))
            hidden = (hidden - bias) * self.stretch + bias
        for module in rest:
            hidden = module(hidden)
        return self.output(last_hidden_state=hidden)

    def norm_map(self, width: int) -> tuple[Tensor, Tensor, bool]:
        """The final norm as an affine map of the normalised residual.

        It is found by what the norm does to some vectors, whatever its parameters are called.

        Returns
        -------
        gain : Tensor, shape (d,)
        bias : Tensor, shape (d,)
        centred : bool
            Whether the mean over the width is taken out first (LayerNorm), or not (RMSNorm).
        """
        norm = self.after[0]
        weight = next(norm.parameters(), torch.zeros(()))
        h = torch.randn(1, 2, width, generator=torch.Generator().manual_seed(0)).to(weight.device)
        bias = norm(torch.zeros_like(h))[0, 0]
        centred = bool(torch.allclose(norm(h), norm(h + 1), atol=1e-4))
        # where a drawn entry is small the other vector's is taken
        normalised = (h - h.mean(-1, keepdim=True) if centred else h)[0]
        normalised = normalised / normalised.pow(2).mean(-1, keepdim=True).sqrt()
        larger = normalised.abs().argmax(0, keepdim=True)
        gain = ((norm(h)[0] - bias) / normalised).gather(0, larger)[0]
        return gain, bias, centred


def check_kind(model) -> None:
    """Refuse what is no decoder-only transformer.

    Raises
    ------
    InputError
        Saying what it is instead.
    """
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise InputError(f"{name}: an encoder-decoder model; layercal reads decoder-only models")
    kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
    recurrent = {kind for kind in kinds if "linear" in kind or "attention" not in kind}
    if getattr(model, "_is_stateful", False) or recurrent:
        raise InputError(
            f"{name}: a recurrent model ({', '.join(sorted(recurrent)) or 'state-space'} blocks); "
            "layercal reads decoder-only transformers"
        )
    if not hasattr(model, "get_output_embeddings") or model.get_output_embeddings() is None:
        raise InputError(f"{name}: no language model head; layercal reads causal language models")


def find_blocks(decoder: nn.Module, n_layers: int) -> nn.ModuleList:
    """Find the one stack of so many blocks.

    Raises
    ------
    InputError
        If there is none, or more than one.
    """
    stacks = [
        child
        for child in decoder.children()
        if isinstance(child, nn.ModuleList) and len(child) == n_layers
    ]
    if len(stacks) != 1:
        raise InputError(
            f"{type(decoder).__name__}: expected one stack of {n_layers} blocks in it, found "
            f"{len(stacks)}; layercal reads decoder-only transformers"
        )
    return stacks[0]


def hidden_states(output) -> Tensor:
    """The hidden states in a block's output, which some families wrap in a tuple."""
    return output if isinstance(output, Tensor) else output[0]


@contextmanager
def hook(block: nn.Module, act, before: bool = False):
    """Call ``act`` on the hidden states that enter or leave a block; entering, it may change them.

    A hook that returns nothing leaves them as they are.
    """

    def entering(module, args, kwargs):
        changed = act(args[0] if args else kwargs["hidden_states"])
        if changed is None:
            return None
        if args:
            return (changed, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed}

    if before:
        handle = block.register_forward_pre_hook(entering, with_kwargs=True)
    else:
        handle = block.register_forward_hook(
            lambda module, args, output: act(hidden_states(output))
        )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def passed_through(block: nn.Module, output: type):
    """Let a block return the hidden states that enter it, in the form of its own output."""

    def forward(*args, **kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        return hidden if issubclass(output, Tensor) else (hidden, None)

    own = block.__dict__.get("forward")  # accelerate keeps one there
    block.forward = forward
    try:
        yield
    finally:
        if own is None:
            del block.forward
        else:
            block.forward = own


def cache_view(cache: DynamicCache) -> DynamicCache:
    """A cache that shares its keys and values with another and may grow on its own."""
    view = copy.copy(cache)
    view.layers = [copy.copy(layer) for layer in cache.layers]
    return view


def as_float32(module: nn.Module) -> nn.Module:
    """The module itself if it is float32 already, else a copy that is."""
    if all(parameter.dtype == torch.float32 for parameter in module.parameters()):
        return module
    return copy.deepcopy(module).float()


def with_modules(module: nn.Module, replaced: dict[str, nn.Module]) -> nn.Module:
    """Shallow copy of a module in which some inner modules, named by path, are others."""
    shell = copy.copy(module)
    shell._modules = dict(module._modules)
    shell.__dict__.pop("forward", None)  # accelerate's, bound to the original
    for path, new in replaced.items():
        name, _, rest = path.partition(".")
        shell._modules[name] = with_modules(shell._modules[name], {rest: new}) if rest else new
    return shell
