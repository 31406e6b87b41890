"""Every figure: of a report those in the registry, of a study the atlas and the workflow."""

from layercal.report.figures import ablation, curves, directions, groups, reliability, steering
from layercal.report.figures.registry import REGISTRY, Drawing, draw

__all__ = ["REGISTRY", "Drawing", "draw"]
__all__ += ["ablation", "curves", "directions", "groups", "reliability", "steering"]
