"""What a transformers model is made of: its blocks, what follows them, and ways into both.

Nothing here knows a family by name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.pytorch_utils import Conv1D

from layercal import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


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

    def forward(self, *args: object, inputs_embeds: Tensor, **kwargs: object) -> object:
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
        """Gain, bias and centring of the final norm, as :func:`norm_map` finds them."""
        return norm_map(self.after[0], width)

    def projection(self, width: int) -> Tensor | None:
        """The matrix (d', d) that follows the final norm, or None where nothing does."""
        if len(self.after) == 1:
            return None
        weight = next(self.after[1].parameters())
        hidden = torch.cat([torch.zeros(1, width), torch.eye(width)]).to(weight)[None]
        for module in self.after[1:]:
            hidden = module(hidden)
        return (hidden[0, 1:] - hidden[0, :1]).T


def norm_map(norm: nn.Module, width: int) -> tuple[Tensor, Tensor, bool]:
    """A norm as an affine map of the normalised residual.

    It is found by what the norm does to some vectors, whatever its parameters are called.

    Returns
    -------
    gain : Tensor, shape (d,)
    bias : Tensor, shape (d,)
    centred : bool
        Whether the mean over the width is taken out first (LayerNorm), or not (RMSNorm).
    """
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


def check_kind(model: PreTrainedModel) -> None:
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


def find_decoder(model: PreTrainedModel, n_layers: int) -> tuple[nn.Module, nn.ModuleList]:
    """Find the module that runs the one stack of so many blocks, and the stack.

    It is what the model calls its decoder or, where that is another part, a child of the model.

    Raises
    ------
    InputError
        If there is none, or more than one; says which stacks there are.
    """
    named = model.get_decoder()
    for decoder in (named, *model.children()):
        stacks = [stack for stack in _stacks(decoder).values() if len(stack) == n_layers]
        if len(stacks) == 1:
            return decoder, stacks[0]
    found = {
        f"{type(decoder).__name__}.{name}": len(stack)
        for decoder in dict.fromkeys((named, *model.children()))
        for name, stack in _stacks(decoder).items()
    }
    said = ", ".join(f"{name} of {length}" for name, length in found.items()) or "no stack"
    raise InputError(
        f"{type(model).__name__}: expected one stack of {n_layers} blocks (num_hidden_layers) in "
        f"{type(named).__name__} or beside it, found {said}; layercal reads decoder-only "
        "transformers"
    )


def _stacks(module: nn.Module) -> dict[str, nn.ModuleList]:
    named = module.named_children()
    return {name: child for name, child in named if isinstance(child, nn.ModuleList)}


def check_head(name: str, decoded: Tensor, entering: Tensor, rounding: float) -> None:
    """Refuse a model that computes more than a scaling between its decoder and its head.

    The lens would still be its own, but what is read off the head's rows (null space, directions
    in logits, frozen norms) takes them to follow the final norm.

    Raises
    ------
    InputError
        If what enters the head is no multiple of what leaves the decoder.
    """
    decoded, entering = decoded.float(), entering.to(decoded.device).float()
    other = decoded.shape != entering.shape
    if not other:  # NaN is another fault, which the gate names
        scale = (decoded * entering).sum() / decoded.square().sum()
        other = (entering - scale * decoded).norm() > rounding * entering.norm()
    if other:
        raise InputError(
            f"{name}: between its final norm and its unembedding it transforms the stream once "
            "more (a prediction head), so no layer can be read by norm and unembedding alone; "
            "layercal reads models whose head follows the final norm"
        )


def hidden_states(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    """The hidden states in a block's output, which some families wrap in a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def answer_places(attention_mask: Tensor) -> Tensor:
    """Place of each row's last real token, wherever its padding is, over all rows; (batch,)."""
    rows, tokens = attention_mask.shape
    within = torch.arange(tokens, device=attention_mask.device)
    starts = torch.arange(rows, device=attention_mask.device) * tokens
    return starts + (attention_mask * within).argmax(-1)


def last_of(parts: Sequence[Tensor]) -> Tensor:
    """Place of the last token of each part, had all parts been joined; (len(parts),)."""
    return torch.tensor([len(part) for part in parts]).cumsum(0) - 1


def rope_border(config: PreTrainedConfig) -> int | None:
    """Tokens up to which longrope scales by its short factors; None if one set holds for all.

    Parameters
    ----------
    config : transformers.PreTrainedConfig
        Of the text model.
    """
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for one in (rope, *(each for each in rope.values() if isinstance(each, dict))):
        if one.get("short_factor") != one.get("long_factor"):
            return getattr(config, "original_max_position_embeddings", None) or one.get(
                "original_max_position_embeddings"
            )
    return None


@contextmanager
def hook(
    block: nn.Module, act: Callable[[Tensor], Tensor | None], before: bool = False
) -> Iterator[None]:
    """Call ``act`` on the hidden states that enter or leave a module; it may change them.

    A hook that returns nothing leaves them as they are.
    """

    def entering(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        changed = act(args[0] if args else kwargs["hidden_states"])
        if changed is None:
            return None
        if args:
            return (changed, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": changed}

    def leaving(
        module: nn.Module, args: tuple, output: Tensor | tuple[Tensor, ...]
    ) -> Tensor | tuple[Tensor, ...] | None:
        changed = act(hidden_states(output))
        if changed is None or isinstance(output, Tensor):
            return changed
        return (changed, *output[1:])

    if before:
        handle = block.register_forward_pre_hook(entering, with_kwargs=True)
    else:
        handle = block.register_forward_hook(leaving)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def passed_through(block: nn.Module, output: type) -> Iterator[None]:
    """Let a block return the hidden states that enter it, in the form of its own output."""

    def forward(*args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, None]:
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


@dataclass(eq=False)
class Call:
    """One call of a module inside a block.

    Attributes
    ----------
    module : nn.Module
    entered, left : Tensor
        The very tensors, so that it can be told which module took what another gave.
    value : Tensor, shape (tokens, width)
        float32 copy of ``left``, which a block may go on to change in place.
    """

    module: nn.Module
    entered: Tensor
    left: Tensor
    value: Tensor


@dataclass
class Parts:
    """What writes on the residual stream in one block: ``h[l] = h[l-1] + scale * (a + m)``.

    Attributes
    ----------
    attention, mlp : nn.Module
        Modules whose outputs are ``a`` and ``m``: where a norm follows the attention or the MLP
        before the sum, that norm.
    scale : float
        1 but in models that scale their updates.
    projection : nn.Module or None
        The linear module from the MLP's neurons to the width of the stream; None in a mixture of
        experts, where no one module takes the MLP's output from its neurons.
    after : nn.Module or None
        The norm between ``projection`` and the stream, where there is one.
    """

    attention: nn.Module
    mlp: nn.Module
    scale: float
    projection: nn.Linear | Conv1D | None
    after: nn.Module | None


@contextmanager
def traced(block: nn.Module) -> Iterator[list[Call]]:
    """List the calls of the modules inside a block, in the order in which they end."""
    calls: list[Call] = []

    def note(module: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple | None) -> None:
        entered = args[0] if args else next(iter(kwargs.values()), None)
        left = hidden_states(output) if output is not None else None
        if isinstance(entered, Tensor) and isinstance(left, Tensor):
            value = left.reshape(-1, left.shape[-1]).float()
            calls.append(Call(module, entered, left, value.clone()))

    with ExitStack() as hooks:
        for module in block.modules():
            if module is not block:
                handle = module.register_forward_hook(note, with_kwargs=True)
                hooks.callback(handle.remove)
        yield calls


def find_parts(
    block: nn.Module, calls: list[Call], entered: Tensor, left: Tensor, rounding: float
) -> Parts:
    """Find what a block's attention and MLP add to the stream, and prove it by their sum.

    The attention is the one child of its kind; the MLP is the last other child with parameters
    that is no norm, be it a module of its own or the second of two bare linear layers.

    Parameters
    ----------
    block : nn.Module
    calls : list of Call
        From :func:`traced`.
    entered, left : Tensor, shape (tokens, d)
        What entered and left the block in that run.
    rounding : float
        Relative difference by which the sum may miss the block's update.

    Raises
    ------
    InputError
        If there is no such pair of modules.
    """
    name, children = type(block).__name__, set(block.children())
    calls = [call for call in calls if call.value.shape == left.shape]
    attentions = [
        call for call in calls if call.module in children and _is_kind(call.module, "attention")
    ]
    others = [
        call
        for call in calls
        if call.module in children and call not in attentions and _computes(call.module)
    ]
    if len(attentions) != 1 or not others:
        raise InputError(
            f"{name}: expected one attention and an MLP among its children, found "
            f"{len(attentions)} and {len(others)}; its update cannot be divided between them"
        )
    attention, mlp = attentions[0], others[-1]
    entered, left = entered.float(), left.float()
    update = left - entered
    # a difference of large numbers is only as exact as they are
    allowed = rounding * update.norm(dim=-1) + torch.finfo(calls[0].left.dtype).eps * (
        entered.norm(dim=-1) + left.norm(dim=-1)
    )
    for a, m in product(_writers(attention, calls), _writers(mlp, calls)):
        written = a.value + m.value
        # a model that scales its updates does so by one number, best seen on the median token: the
        # first one's stream may be so large that its update is all rounding
        seen = ((update * written).sum(-1) / written.square().sum(-1)).median().item()
        for scale in (1.0, seen):
            if ((update - scale * written).norm(dim=-1) <= allowed).all():
                last = _last_linear(mlp, calls)
                if last is None or not (last is m or torch.equal(last.value, mlp.value)):
                    return Parts(a.module, m.module, scale, None, None)
                after = None if m.module in (last.module, mlp.module) else m.module
                linear = cast("nn.Linear | Conv1D", last.module)
                return Parts(a.module, m.module, scale, linear, after)
    raise InputError(
        f"{name}: what it adds to the residual stream is not the sum of what its "
        f"{type(attention.module).__name__} and its {type(mlp.module).__name__} give"
    )


def _is_kind(module: nn.Module, kind: str) -> bool:
    return kind in type(module).__name__.lower()


def _computes(module: nn.Module) -> bool:
    return not _is_kind(module, "norm") and any(True for _ in module.parameters())


def _writers(call: Call, calls: list[Call]) -> list[Call]:
    """Calls that may give what is added to the stream, most likely first.

    The module's own, or that of the norm which takes its output as it is; failing that the last
    linear layer in it, for modules that are handed the stream and add to it themselves.
    """
    end, current = call, call.left
    for later in calls[calls.index(call) + 1 :]:
        if later.entered is current and not _computes(later.module):
            current = later.left
            end = end if torch.equal(later.value, end.value) else later  # dropout gives the same
    last = _last_linear(call, calls)
    return [end] if last is None else [end, last]


def _last_linear(call: Call, calls: list[Call]) -> Call | None:
    inside = set(call.module.modules())
    linear = [c for c in calls if c.module in inside and isinstance(c.module, nn.Linear | Conv1D)]
    return linear[-1] if linear else None


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
        shell._modules[name] = with_modules(shell.get_submodule(name), {rest: new}) if rest else new
    return shell
