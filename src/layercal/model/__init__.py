"""A language model whose residual stream can be read and changed."""

from layercal.model.lens_model import LensModel, load
from layercal.model.passes import Prefix

__all__ = ["LensModel", "Prefix", "load"]
