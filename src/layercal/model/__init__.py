"""A language model whose residual stream can be read and changed."""

from layercal.model.lens_model import LensModel, Prefix, load

__all__ = ["LensModel", "Prefix", "load"]
