"""Sustained load on one device bundle: requests come when they are due, however slow the answers are.

schedule   when requests are due, and a device that answers them   probe     the device process: both generators
loadgen    MLPerf's LoadGen in place of our schedule               results   what is written
run        the whole
"""

from harmony.bench.sustained.results import SustainedResult, SustainedSettings
from harmony.bench.sustained.run import sustain

__all__ = ["SustainedResult", "SustainedSettings", "sustain"]
