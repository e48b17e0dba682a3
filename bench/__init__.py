"""Latency × accuracy × bytes × memory of bundles, in virtual time; reports; the demo.

plan      what is to be measured, checked first     stream    a device process answers the stream
probe     the stopwatch, a process of its own       replay    what exit 2 and the back end would have said
mixes     one stream → every ρ                      links     networks in virtual time
results   the schema of results.json                report    one self-contained HTML file
child     device processes: ask and reply           pictures  images that show nothing
cgroups   so much memory, so much of a CPU          limits, quota   a device that is held to it
endurance does a device's memory grow?              exporting what lowering once for many clients saves
sweep, sustained, arm, experiment, peers            packages of their own
"""

from harmony.bench.folder import require_writable
from harmony.bench.results import BenchResult, BenchSettings
from harmony.bench.runner import BenchEvent, bench
from harmony.bench.saving import save_bench
from harmony.bench.text import accuracy_rows, summary_rows

__all__ = [
    "BenchEvent",
    "BenchResult",
    "BenchSettings",
    "accuracy_rows",
    "bench",
    "require_writable",
    "save_bench",
    "summary_rows",
]
