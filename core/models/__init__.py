"""Model families. The only part of core that needs torch."""

from harmony.core.models.back_end import BackEnd
from harmony.core.models.blocks import Kernels, computed_by
from harmony.core.models.front_end import FAMILIES, ExitHead, FrontEnd, FrontOut, feature_spec

__all__ = ["FAMILIES", "BackEnd", "ExitHead", "FrontEnd", "FrontOut", "Kernels", "computed_by", "feature_spec"]
