"""Steering read at the steered layer in closed form, which makes no changed residual.

A change at a layer is ``h + c B``, with B a fitted basis of few rows, and perhaps a change of
length. What is read there depends on it by the products of h and B with the option rows, and by
those of h and B with each other, which give its norm. So a question costs its products with the
bases, whatever the number of scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from layercal.model import LensModel
from layercal.model.unembedding import OptionReadout, as_seen
from layercal.steering.fitted import Fitted
from layercal.steering.steered import Steered


@dataclass
class _Span:
    """Bases in one intervention: the products that are the same for all questions of a fold.

    Attributes
    ----------
    how : str
        Of :data:`layercal.steering.interventions.INTERVENTIONS`.
    read : Tensor, shape (layers, F, r, n_options)
        Products of their rows with the option rows.
    inner, seen : Tensor, shape (layers, F, r, r)
        With each other, and as the final norm sees them.
    """

    how: str
    read: Tensor
    inner: Tensor
    seen: Tensor

    def coefficients(self, eta: Tensor, alphas: Tensor, along: Tensor) -> Tensor:
        """How much of each row a change adds; (layers, F, alphas, r).

        Parameters
        ----------
        eta : Tensor, shape (layers, F, alphas)
        alphas : Tensor, shape (alphas,)
        along : Tensor, shape (layers, F, r)
            Products of the rows with the residual.
        """
        if self.how == "rescale":
            return alphas[:, None] * along[..., None, :]
        return (-eta if self.how == "subtract" else eta)[..., None]


@dataclass
class _Question:
    """Residuals of a question at the layers, and what is the same however they are changed.

    Attributes
    ----------
    h, seen : Tensor, shape (layers, d)
        As they are, and as the final norm sees them.
    products : Tensor, shape (layers, n_options)
        With the option rows.
    square : Tensor, shape (layers,)
        Mean square of ``seen``.
    """

    h: Tensor
    seen: Tensor
    products: Tensor
    square: Tensor


class ClosedForm:
    """Sweeps of prompts read at the steered layer.

    Parameters
    ----------
    model : LensModel
        For which :func:`layercal.model.unembedding.reads_in_closed_form` holds.
    fitted : Fitted
    alphas : sequence of float
    """

    def __init__(self, model: LensModel, fitted: Fitted, alphas: Sequence[float]):
        self.model, self.fitted, self.alphas = model, fitted, torch.tensor(alphas).double()
        self.layers = list(fitted.layers)
        self.bases: dict[int, tuple[list[str], list[Tensor], Tensor]] = {}
        self.known: dict[tuple, tuple[OptionReadout, list[_Span]]] = {}

    @torch.inference_mode()
    def sweep(self, residuals: Tensor, option_ids: Tensor, own: int) -> Steered[Tensor]:
        """Sweep one prompt; as :func:`layercal.steering.interventions.sweep_prompt` in mode lens.

        Parameters
        ----------
        residuals : Tensor, shape (L + 1, d)
        option_ids : Tensor, shape (n_options,)
        own : int
            The question's fold.
        """
        with _one_thread():
            *read, of_controls = self._read_all(residuals, option_ids, own)
        live, frozen, growth = zip(*read, strict=True)
        return Steered(
            fitted=torch.stack(live).movedim(1, 2),
            frozen=torch.stack(frozen).movedim(1, 2),
            controls=of_controls[0].transpose(0, 1),
            growth=growth[0].transpose(0, 1),
        )

    def _read_all(self, residuals: Tensor, option_ids: Tensor, own: int) -> Iterator[tuple]:
        """What is read of each variant, and last of the controls; see :meth:`_read`."""
        eta = self.fitted.norms[:, own, self.layers].T.double()[..., None] * self.alphas
        readout, spans = self._known(option_ids, own)
        h = residuals[self.layers].double().cpu()
        seen = as_seen(self.model, h)
        question = _Question(h, seen, seen @ readout.rows.T, seen.square().mean(-1))
        along = self._along(h, own)
        along_seen = self._along(seen, own) if self.model.norm_map[2] else along
        # unsteered, a layer reads what the lens reads of it, to the last digit
        still = self.model.option_logits(residuals[self.layers], option_ids).cpu()
        rounding = (still - readout.logits(question.products, question.square))[:, None, None]
        for span, *by_row in zip(spans, along, along_seen, strict=True):
            of_fits = eta if span is not spans[-1] else eta[:, [own]]
            live, frozen, growth = self._read(readout, question, span, of_fits, *by_row)
            yield live + rounding, frozen + rounding, growth

    def _read(
        self,
        readout: OptionReadout,
        question: _Question,
        span: _Span,
        eta: Tensor,
        along: Tensor,
        along_seen: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Live and frozen logits (layers, F, alphas, n_options), and growth (layers, F, alphas)."""
        h, c = question.h, span.coefficients(eta, self.alphas, along)
        products = question.products[:, None, None] + c @ span.read
        square = _square(question.seen, c, along_seen, span.seen)
        if span.how == "rotate":
            kept = h.square().sum(-1)[:, None, None] / _square(h, c, along, span.inner)
            products, square = products * kept.sqrt()[..., None], square * kept
        mean, before = square / h.shape[-1], question.square[:, None, None]
        live, frozen = readout.logits(products, mean), readout.logits(products, mean, before)
        return live, frozen, (mean / before).sqrt().float()

    def _along(self, h: Tensor, own: int) -> list[Tensor]:
        """Products of residuals (layers, d) with the rows of all bases; each (layers, F, r)."""
        _, bases, joined = self._bases(own)
        return _parts((joined @ h[..., None])[..., 0], [one.shape[1:3] for one in bases])

    def _bases(self, own: int) -> tuple[list[str], list[Tensor], Tensor]:
        """How a question of a fold is steered, and by which bases (layers, F, r, d), controls last.

        And all their rows, (layers, rows, d), of which the bases are views; float64.
        """
        if own not in self.bases:
            variants, places = self.fitted.variants(), range(len(self.layers))
            every = [torch.stack([one.basis(own, at) for at in places]) for one in variants]
            every.append(self.fitted.controls[:, :, None])
            joined = torch.cat([one.flatten(1, 2) for one in every], 1).double()
            views = _parts(joined, [one.shape[1:3] for one in every])
            how = [one.direction.intervention for one in variants]
            self.bases[own] = [*how, "add"], views, joined
        return self.bases[own]

    def _known(self, option_ids: Tensor, own: int) -> tuple[OptionReadout, list[_Span]]:
        """What is the same for all questions of a fold with these options."""
        key = (*option_ids.tolist(), own)
        if key not in self.known:
            readout = OptionReadout(self.model, option_ids)
            spans = []
            for how, basis in zip(*self._bases(own)[:2], strict=True):
                seen = as_seen(self.model, basis)
                products = basis @ readout.rows.T, basis @ basis.mT, seen @ seen.mT
                spans.append(_Span(how, *products))
            self.known[key] = readout, spans
        return self.known[key]


def _parts(joined: Tensor, shapes: Sequence[Sequence[int]]) -> list[Tensor]:
    """Views (layers, F, r, ...) of what is joined along rows, (layers, rows, ...)."""
    parts = joined.split([fits * rank for fits, rank in shapes], 1)
    return [part.unflatten(1, tuple(shape)) for part, shape in zip(parts, shapes, strict=True)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Work on arrays too small to share: where the cores are busy, threads wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _square(h: Tensor, c: Tensor, along: Tensor, inner: Tensor) -> Tensor:
    """Square of the norm of ``h + c B``; (layers, F, alphas)."""
    across = 2 * (c * along[..., None, :]).sum(-1)
    return h.square().sum(-1)[:, None, None] + across + ((c @ inner) * c).sum(-1)
