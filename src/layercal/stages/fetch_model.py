"""Fetch one model of the registry: download, check, convert, write its manifest last."""

from pathlib import Path

from layercal import stages
from layercal.model import proof
from layercal.sources import registry, weights


def main() -> None:
    """Run the stage."""
    made = stages.parser("fetch_model", __doc__)
    made.add_argument("--model", required=True, help="name in the registry")
    made.add_argument("--registry", type=Path, default="config/models.yaml")
    made.add_argument("--manifest", type=Path, required=True, help="manifest.json to write")
    stages.run(stage, made)


def stage(args) -> None:
    """Fetch into the manifest's folder."""
    entry = registry.entry_of(args.registry, args.model)
    manifest = weights.fetch_model(args.model, entry, args.manifest.parent, proof.prove)
    stages.log.info("%s: %d files", args.model, len(manifest["files"]))


if __name__ == "__main__":
    main()
