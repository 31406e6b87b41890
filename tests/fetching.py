"""Models fetched as the workflow fetches them: proven before they are taken."""

from layercal.model import proof
from layercal.sources import weights


def fetch_model(name, entry, folder):
    """The manifest of a model that is fetched and proven."""
    return weights.fetch_model(name, entry, folder, proof.prove)
