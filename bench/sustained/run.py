"""One bundle under sustained load, in a process of its own."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors.numpy import save_file

from harmony.bench.child import ask
from harmony.bench.host import Watch
from harmony.bench.job import IMAGES
from harmony.bench.plan import make_plan
from harmony.bench.results import BenchSettings
from harmony.bench.sustained.probe import SustainedJob, SustainedRuns
from harmony.bench.sustained.results import FILES_OF, SustainedResult, SustainedSettings


def sustain(settings: SustainedSettings) -> SustainedResult:
    """Twice `seconds` or longer, where no rate is named. The errors of bundles and data; `loadgen` has to be installed
    if that is to ask."""
    plan = make_plan(
        BenchSettings(
            bundles=(settings.bundle,),
            engines=(FILES_OF[settings.engine],),
            data=settings.data,
            data_dir=settings.data_dir,
            rhos=(settings.rho,),
            limit=settings.limit,
            seed=settings.seed,
        )
    )
    target, watch = plan.targets[0], Watch()
    with TemporaryDirectory(prefix="harmony-sustained-") as folder:
        images = Path(folder) / "images.safetensors"
        save_file({IMAGES: target.images}, images)
        job = SustainedJob(settings=settings, images=images)
        runs = ask("harmony.bench.sustained.probe", job, SustainedRuns, where=settings.bundle)
    return SustainedResult(
        harmony_version=version("harmony-sfl"),
        settings=settings,
        host=watch.host(),
        architecture=str(target.manifest.architecture),
        scheduled=runs.scheduled,
        loadgen=runs.loadgen,
    )
