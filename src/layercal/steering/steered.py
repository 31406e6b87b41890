"""Steered readings as they are saved: arrays with names, one set of them for each mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

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


def load(run: results.Run, paths: Sequence[Path]) -> tuple[dict, dict]:
    """Gather shards, the prompts in the order of the run.

    Parameters
    ----------
    run : Run
    paths : sequence of Path

    Returns
    -------
    steered : dict of Steered
        By mode; arrays of which the first axis is the prompt.
    sums : dict of array, shape (cells, layers, R, alphas, sums)
        By mode, of all controls; see :class:`layercal.steering.tally.Tally`.

    Raises
    ------
    InputError
        As of :meth:`layercal.results.Run.shards`.
    """
    import torch

    shards, order = run.shards(paths)
    names = [one.name for one in fields(Steered)]

    def gathered(name: str) -> np.ndarray:
        return torch.cat([shard.pop(name) for shard in shards])[order].numpy()

    modes = [mode for mode in MODES if _key(mode, "fitted") in shards[0]]
    steered = {
        mode: Steered(**{name: gathered(_key(mode, name)) for name in names}) for mode in modes
    }
    units = {
        mode: reduce(torch.add, (shard[_key(mode, "sums")] for shard in shards)) for mode in modes
    }
    sums = {mode: one.numpy() * tally.UNIT for mode, one in units.items()}
    return steered, sums


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
