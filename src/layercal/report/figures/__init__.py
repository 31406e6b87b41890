"""Every figure: of a report those in the registry, of a study the atlas and the workflow."""

from layercal.report.figures import (
    ablation,
    abstaining,
    curves,
    directions,
    groups,
    recalibration,
    reliability,
    steering,
)
from layercal.report.figures.registry import REGISTRY, Drawing, draw

__all__ = ["REGISTRY", "Drawing", "draw"]
__all__ += ["ablation", "abstaining", "curves", "directions", "groups", "recalibration"]
__all__ += ["reliability", "steering"]
