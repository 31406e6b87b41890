"""From questions to the tokens that a model reads."""
