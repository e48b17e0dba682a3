"""Long attacks on a real service: `python -m harmony.bench.serving_attack fuzz|soak|swaps --help`.

fuzz: bodies made from good ones by random damage, over a keep-alive connection; every answer must be one of the
protocol's, none a 500, and good requests must be answered right between them. soak: good requests in a closed loop.
swaps: one version after another of a real registry, while others ask; no request may fail. In each the memory of the
service must not grow by a twentieth. All end with exit code 1, and say why, if that fails; the counts are bounded, the
seed makes a run repeatable.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from harmony.bench.host import Watch
from harmony.bench.serving_attack_results import AttackResult, Fuzz, Soak, Swaps
from harmony.bench.serving_fuzz import fuzz
from harmony.bench.serving_models import write_bundles
from harmony.bench.serving_requests import CUT
from harmony.bench.serving_soak import soak, swaps
from harmony.cloud.process import running_service
from harmony.core.errors import HarmonyError
from harmony.core.sealed import write_atomically

_COUNTS = {"fuzz": 100_000, "soak": 1_000_000, "swaps": 100}
_WIDTH = 32


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m harmony.bench.serving_attack", description=__doc__)
    parser.add_argument("kind", choices=tuple(_COUNTS))
    parser.add_argument("--count", type=int, help="cases, requests or swaps; default 100,000, 1,000,000 and 100")
    parser.add_argument("--connections", type=int, default=None, help="of soak (32) and swaps (4)")
    parser.add_argument("--seed", type=int, default=0, help="of the fuzzer")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result there; without it, to stdout")
    given = parser.parse_args(arguments)
    given.count = _COUNTS[given.kind] if given.count is None else given.count
    if not 1 <= given.count <= 20_000_000:
        parser.error("--count is 1 to 20,000,000")
    watch = Watch()
    try:
        with tempfile.TemporaryDirectory() as folder:
            attack = _attack(given, Path(folder))
        result = AttackResult(host=watch.host(), cut=str(CUT), attack=attack)
        text = result.model_dump_json(indent=1) + "\n"
        if given.out is None:
            sys.stdout.write(text)
        else:
            write_atomically(given.out, text.encode())
    except HarmonyError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if problems := result.problems():
        sys.exit("; ".join(problems))


def _attack(given: argparse.Namespace, folder: Path) -> Fuzz | Soak | Swaps:
    plain, quantised, _ = write_bundles(folder, _WIDTH)
    if given.kind == "swaps":
        return swaps(folder / "registry", (plain, quantised), given.count, given.connections or 4)
    with running_service(quantised, "--queue-seconds", "10") as service:
        if given.kind == "fuzz":
            return fuzz(service, given.count, given.seed)
        return soak(service, given.count, given.connections or 32)


if __name__ == "__main__":
    main()
