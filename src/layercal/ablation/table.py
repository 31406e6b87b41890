"""What readings would be without some part of the network."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from layercal.metrics.scoring import Scoring

# the table of a model whose parts cannot be told
NOTHING = pd.DataFrame({"without": pd.Series(dtype=str)})


@dataclass(frozen=True, kw_only=True)
class Ablated:
    """A part of the network that is put at its mean.

    Attributes
    ----------
    name : str
        For readers; the other fields say what it stands for.
    what : {"block", "neuron", "entropy neurons", "random neurons"}
    block : int, optional
    part : {"attention", "mlp"}, optional
        Of the block.
    neuron : int, optional
        Of the last block.
    draw : int, optional
        Of a random set.
    """

    name: str
    what: str
    block: int | None = None
    part: str | None = None
    neuron: int | None = None
    draw: int | None = None

    def columns(self) -> dict:
        """The fields as columns of a table, the name as ``without``."""
        fields = asdict(self)
        return {"without": fields.pop("name"), **fields}


def ablations(
    scoring: Scoring, before: np.ndarray, without: dict[Ablated, np.ndarray]
) -> list[dict]:
    """Compare the whole network with what is left of it.

    Parameters
    ----------
    scoring : Scoring
    before : array, shape (n, n_options)
        Logits of the whole network.
    without : dict of array, shape (n, n_options)
        Logits with each part at its mean.

    Returns
    -------
    list of dict
        The columns of the part, and the changes, with paired 95 % intervals; a positive change of
        ECE means that the part lowers it.
    """
    return [{**part.columns(), **scoring.changes(before, one)} for part, one in without.items()]
