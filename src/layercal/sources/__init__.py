"""Where models and questions come from, and bringing them here."""
