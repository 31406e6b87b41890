"""Directions as they are saved: what each is, in fields, beside its vectors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from torch import Tensor, tensor, uint8

from layercal import InputError, results

# only estimators are candidates for a claim; each kind is a family of its own in Holm's correction
ESTIMATOR, TRANSFER, CONTROL, BASELINE = "estimator", "transfer", "control", "baseline"
# what is done with the primary direction, beside adding it, as a control
CONTROLS = "subtract", "rotate", "rescale"
IDENTITY = "identity"  # the tensor that says in JSON what each direction is


@dataclass(frozen=True, kw_only=True)
class Direction:
    """What a direction, or subspace, is, and what is done with it.

    Attributes
    ----------
    name : str
        For readers; the other fields say what it stands for.
    kind : {"estimator", "transfer", "control"}
    estimator : str
    rank : int, optional
        Dimensions that the estimator takes into account.
    depth : float, optional
        Relative depth around which it is fitted, where that is not its estimator's own.
    fitted_on : str, optional
        Group of the questions, or other model and question set; all questions if left out.
    part : {"null-space", "row-space"}, optional
        Which of its parts this is.
    intervention : str
        Of :data:`layercal.steering.interventions.INTERVENTIONS`.
    """

    name: str
    kind: str
    estimator: str
    rank: int | None = None
    depth: float | None = None
    fitted_on: str | None = None
    part: str | None = None
    intervention: str = "add"

    def columns(self) -> dict:
        """The fields as columns of a table, the name as ``direction``."""
        fields = asdict(self)
        return {"direction": fields.pop("name"), **fields}

    def as_control(self, how: str) -> Direction:
        """The same direction in another intervention, as a control."""
        return replace(self, name=f"{self.name} ({how})", kind=CONTROL, intervention=how)

    def of_part(self, part: str) -> Direction:
        """One part of the direction, as a control."""
        return replace(self, name=f"{self.name} ({part} part)", kind=CONTROL, part=part)

    def from_source(self, source: str) -> Direction:
        """The same estimator, fitted on other questions."""
        name = f"{self.name} from {source}"
        return replace(self, name=name, kind=TRANSFER, fitted_on=source)


@dataclass
class Variant:
    """A direction, or subspace, with its vectors.

    Attributes
    ----------
    direction : Direction
    fits : Tensor, shape (K, K, layers or 1, r, d)
        Orthonormal rows; ``[f, g]`` did not see the folds f and g.
    """

    direction: Direction
    fits: Tensor

    def basis(self, own: int, place: int) -> Tensor:
        """Fits for the K outer folds that did not see a question's own fold; (K, r, d)."""
        return self.fits[:, own, place if self.fits.shape[2] > 1 else 0]


@dataclass(kw_only=True)
class Fitted:
    """All that is fitted once and steered by: ``directions.safetensors``.

    Attributes
    ----------
    directions : dict of Tensor, shape (K, K, layers or 1, r, d)
        By :class:`Direction`, the primary one first, what is not added last.
    controls : Tensor, shape (layers, R, d)
        Matched random directions.
    norms : Tensor, shape (K, K, L + 1)
        Mean residual norms, as each fit saw them.
    layers : sequence of int
        At which directions may be added.
    fold : Tensor of int, shape (n,)
        Of each prompt.
    """

    directions: dict[Direction, Tensor]
    controls: Tensor
    norms: Tensor
    layers: Sequence[int]
    fold: Tensor

    @classmethod
    def load(cls, run: results.Run, path: Path) -> Fitted:
        """Read what :meth:`save` wrote.

        Raises
        ------
        InputError
            As of :meth:`layercal.results.Run.check`, or if it does not say what its vectors are.
        """
        tensors = run.read(path)
        if IDENTITY not in tensors:
            raise InputError(
                f"{path} does not say what its directions are, so it is of an earlier version; "
                "delete it and run again, which makes it anew"
            )
        fields = json.loads(bytes(tensors.pop(IDENTITY).tolist()))
        fits = [tensors.pop(f"fits/{place}") for place in range(len(fields))]
        directions = dict(zip((Direction(**one) for one in fields), fits, strict=True))
        layers = tensors.pop("layers").tolist()
        return cls(directions=directions, layers=layers, **tensors)

    def save(self, run: results.Run, path: Path) -> None:
        """Write the vectors, and as JSON what each of them is."""
        tensors: dict[str, Tensor | None] = {
            f"fits/{i}": fits for i, fits in enumerate(self.directions.values())
        }
        tensors |= {"controls": self.controls, "norms": self.norms, "fold": self.fold}
        tensors["layers"] = tensor(self.layers)
        fields = json.dumps([asdict(one) for one in self.directions]).encode()
        # safetensors has metadata of one entry only that is the same file each time
        tensors[IDENTITY] = tensor(list(fields), dtype=uint8)
        run.write(path, {name: one for name, one in tensors.items() if one is not None})

    def variants(self) -> list[Variant]:
        """Everything that is done: each direction is added; the first one's controls; the rest."""
        fits = [Variant(direction, fits) for direction, fits in self.directions.items()]
        added = [one for one in fits if one.direction.intervention == "add"]
        controls = [replace(fits[0], direction=fits[0].direction.as_control(h)) for h in CONTROLS]
        return [*added, *controls, *fits[len(added) :]]
