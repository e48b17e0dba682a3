"""Model families. The only part of core that needs torch."""

from harmony.core.models.back_end import BackEnd
from harmony.core.models.front_end import FAMILIES, ExitHead, FrontEnd, FrontOut, feature_spec

__all__ = ["FAMILIES", "BackEnd", "ExitHead", "FrontEnd", "FrontOut", "feature_spec"]
