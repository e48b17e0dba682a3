"""The sweep: exit thresholds × engines × precisions × devices × links, from one measurement of each segment.

schema    what results.json holds                      calibrate   this host against published figures
probe     a process: costs and scores of one bundle    unit        one bundle under one engine, measured
quality   scores → accuracy by threshold and ρ         combine     costs × device + link → latency, for every case
run       the whole, resumable                         files       results.json, tables, report.html
counted   Arm instructions in the place of CPU times   choices     cases of single clients → ways to build a device
"""

from harmony.bench.sweep.files import SWEEP_JSON, read_sweep, save_sweep
from harmony.bench.sweep.run import SweepEvent, sweep
from harmony.bench.sweep.schema import SweepResult, SweepSettings

__all__ = ["SWEEP_JSON", "SweepEvent", "SweepResult", "SweepSettings", "read_sweep", "save_sweep", "sweep"]
