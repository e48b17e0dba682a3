"""On-device training: a bundle made personal on the user's own images. No torch.

outcome = personalize(bundle, "photos/", Wish(what="head"), Budget(seconds=60))
"""

from harmony.device.personal.budget import Budget
from harmony.device.personal.learning import Plan
from harmony.device.personal.lesson import Wish
from harmony.device.personal.outcome import Outcome
from harmony.device.personal.run import personalize, roll_back

__all__ = ["Budget", "Outcome", "Plan", "Wish", "personalize", "roll_back"]
