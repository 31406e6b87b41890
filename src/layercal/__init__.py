"""Calibration of language models, read layer by layer."""


class InputError(ValueError):
    """What the user gave cannot be used; the message says what, where, and what to do."""
