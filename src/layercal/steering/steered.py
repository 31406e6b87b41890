"""Steered readings as they are saved: arrays with names, one set of them for each mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np
from safetensors import safe_open

from layercal import results
from layercal.steering import tally

if TYPE_CHECKING:
    from torch import Tensor


class Mode(NamedTuple):
    """A way to steer and to read.

    Attributes
    ----------
    read : function (layer, final layer) -> int
        Layer that is read where another is steered.
    label : str
    acts : str
        What of the model acts on the change, in a sentence.
    behind : bool
        Whether changed answer tokens run behind the prompt, which must have run for it.
    """

    read: Callable[[int, int], int]
    label: str
    acts: str
    behind: bool = False


MODES = {
    "lens": Mode(
        lambda layer, final: layer,
        "steered, read at the steered layer",
        "Only the final norm and the unembedding act on the changed stream.",
    ),
    "through-network": Mode(
        lambda layer, final: final,
        "steered, read at the last layer",
        "The remaining blocks run on the changed stream.",
        behind=True,
    ),
    "all-positions": Mode(
        lambda layer, final: final,
        "steered at all positions, read at the last layer",
        "The same change at each position; the remaining blocks run on all of them.",
    ),
}


Array = TypeVar("Array")  # NumPy's, or a Tensor
BLOCK = 64  # prompts of a shard that are read at once


@dataclass
class Steered(Generic[Array]):
    """Readings of prompts that are steered in one mode; of one prompt without the axis n.

    Attributes
    ----------
    fitted : array or Tensor, shape (n, variants, K, layers, alphas, n_options)
        Logits, -inf where a question has no such option. ``[:, :, f]`` is steered by fits that saw
        neither fold f nor the question's own.
    frozen : array or Tensor, shape (n, variants, K, layers, alphas, n_options)
        The same with the final norm's scale frozen at that of the unsteered stream.
    controls : array or Tensor, shape (n, R, layers, alphas, n_options)
        Under matched controls; all of them of one prompt, the first of many.
    growth : array or Tensor, shape (n, K, layers, alphas)
        By what the primary direction grows the scale that the final norm divides by.
    """

    fitted: Array
    frozen: Array
    controls: Array
    growth: Array

    def take(self, rows: np.ndarray) -> Steered[Array]:
        """Keep only some of the prompts."""
        return Steered(**{name: one[rows] for name, one in vars(self).items()})


class Recorder:
    """Steered readings of one shard, gathered prompt by prompt.

    Parameters
    ----------
    cells : array of int, shape (n,)
        From :func:`layercal.steering.tally.cells`, of all prompts of the run.
    n_options : int
        Logits are -inf for options that a question has not.
    n_bins : int
        Of the ECE of the controls.
    """

    def __init__(self, cells: np.ndarray, n_options: int, n_bins: int):
        self.cells, self.n_options, self.n_bins = cells, n_options, n_bins
        self.kept: dict[str, list[Tensor]] = {}
        self.sums: dict[str, np.ndarray] = {}

    def keep(self, name: str, logits: Tensor) -> None:
        """Keep logits (..., options) of the next prompt."""
        from torch.nn.functional import pad

        padded = pad(logits, (0, self.n_options - logits.shape[-1]), value=-np.inf)
        self.kept.setdefault(name, []).append(padded)

    def add(self, row: int, answer: int, read: dict[str, Steered[Tensor]]) -> None:
        """Keep what was read of the prompt in a row; of the controls the first, and sums of all."""
        for mode, one in read.items():
            self._tally(row, answer, mode, one.controls)
            self.keep(_key(mode, "fitted"), one.fitted)
            self.keep(_key(mode, "frozen"), one.frozen)
            self.keep(_key(mode, "controls"), one.controls[:1])
            self.kept.setdefault(_key(mode, "growth"), []).append(one.growth)

    def _tally(self, row: int, answer: int, mode: str, controls: Tensor) -> None:
        by_layer = controls.transpose(0, 1).numpy()[..., None, :]
        added = tally.score_rows(by_layer, np.array([answer]), self.n_bins)[..., 0, :]
        if mode not in self.sums:
            self.sums[mode] = np.zeros((self.cells.max() + 1, *added.shape), np.int64)
        self.sums[mode][self.cells[row]] += tally.in_units(added)

    def tensors(self) -> dict[str, Tensor]:
        """All that was kept, by the names under which it is saved."""
        import torch

        sums = {_key(mode, "sums"): torch.from_numpy(one) for mode, one in self.sums.items()}
        return {name: torch.stack(one) for name, one in self.kept.items()} | sums


class Stored:
    """Readings of all prompts in their files, of which one variant is read at a time.

    Indexed as an array of shape (n, variants, ...): ``[:, variant]`` reads that of each prompt;
    ``[rows]`` keeps some of the prompts and reads nothing. So a sweep larger than memory can be
    evaluated.

    Parameters
    ----------
    paths : sequence of Path
        Shards that are not empty.
    name : str
        Of the tensor.
    rows : array of int, shape (n,)
        Their places in the shards one after another, in the order wanted.
    """

    def __init__(self, paths: Sequence[Path], name: str, rows: np.ndarray):
        self.paths, self.name, self.rows = paths, name, rows

    def __getitem__(self, key: Any) -> Any:
        if not isinstance(key, tuple):
            return Stored(self.paths, self.name, self.rows[key])
        every, variant = key
        if every != slice(None):
            raise TypeError("stored readings are indexed as [rows] or [:, variant]")
        wanted = np.argsort(self.rows)
        stored, start, found = self.rows[wanted], 0, np.empty(0)
        for block in self._blocks(variant):
            here = slice(*np.searchsorted(stored, (start, start + len(block))))
            if not start:
                found = np.empty((len(wanted), *block.shape[1:]), block.dtype)
            found[wanted[here]] = block[stored[here] - start]
            start += len(block)
        return found

    def _blocks(self, variant: int) -> Iterator[np.ndarray]:
        """One variant of some rows at a time, in the order in which they are stored."""
        for path in self.paths:
            start, end = 0, 1
            while start < end:
                # opened anew: what is read of an open file stays in memory until it is closed
                with safe_open(path, "np") as shard:
                    tensor = shard.get_slice(self.name)
                    end = tensor.get_shape()[0]
                    rows = slice(start, min(start + BLOCK, end))
                    block = tensor[rows, variant : variant + 1][:, 0]
                yield block
                start += BLOCK


def load(run: results.Run, paths: Sequence[Path]) -> tuple[dict, dict]:
    """Open shards, the prompts in the order of the run.

    Parameters
    ----------
    run : Run
    paths : sequence of Path

    Returns
    -------
    steered : dict of Steered
        By mode; of which the first axis is the prompt. ``fitted`` and ``frozen`` are
        :class:`Stored`.
    sums : dict of array, shape (cells, layers, R, alphas, sums)
        By mode, of all controls; see :class:`layercal.steering.tally.Tally`.

    Raises
    ------
    InputError
        As of :meth:`layercal.results.Run.shards`.
    """
    rows: list[np.ndarray] = []
    small: dict[str, list[np.ndarray]] = {}
    sums: dict[str, np.ndarray] = {}
    for path in paths:
        run.check(path)
        with safe_open(path, "np") as shard:
            rows.append(shard.get_tensor("rows"))
            for mode in MODES if len(rows[-1]) else ():
                if _key(mode, "sums") not in shard.keys():  # noqa: SIM118
                    continue
                sums[mode] = sums.get(mode, 0) + shard.get_tensor(_key(mode, "sums"))
                for name in ("controls", "growth"):
                    key = _key(mode, name)
                    small.setdefault(key, []).append(shard.get_tensor(key))
    order = run.order(paths, rows)
    held = [path for path, some in zip(paths, rows, strict=True) if len(some)]
    steered: dict[str, Steered] = {
        mode: Steered(
            fitted=Stored(held, _key(mode, "fitted"), order),
            frozen=Stored(held, _key(mode, "frozen"), order),
            controls=np.concatenate(small[_key(mode, "controls")])[order],
            growth=np.concatenate(small[_key(mode, "growth")])[order],
        )
        for mode in MODES
        if mode in sums
    }
    return steered, {mode: sums[mode] * tally.UNIT for mode in steered}


def shown(run: results.Run, paths: Sequence[Path], mode: str, fold: np.ndarray) -> np.ndarray:
    """Logits under the primary direction, fitted without each question's fold, and one control.

    No more than that is read, since shards may be large.

    Parameters
    ----------
    run : Run
    paths : sequence of Path
    mode : str
    fold : array of int, shape (n,)

    Returns
    -------
    array, shape (2, layers, alphas, n, n_options)
    """
    read, rows = [], []
    for path in paths:
        with safe_open(path, "np") as shard:
            rows.append(shard.get_tensor("rows"))
            if not len(rows[-1]):
                continue
            primary = shard.get_slice(_key(mode, "fitted"))[:, :1][:, 0]
            control = shard.get_slice(_key(mode, "controls"))[:, 0]
        held_out = primary[np.arange(len(primary)), fold[rows[-1]]]
        read.append(np.stack([held_out, control]))
    ordered = np.concatenate(read, 1)[:, run.order(paths, rows)]
    return np.moveaxis(ordered, 1, -2)


def _key(mode: str, name: str) -> str:
    return f"{mode}/{name}"
