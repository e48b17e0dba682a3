"""The whole story at once: train SplitGP and HARMONY side by side, export, serve, run every device, report.

DEMO/splitgp, DEMO/harmony     runs, each with its checkpoint
DEMO/bundles/                  HARMONY's devices and its cloud
DEMO/results.json, results.csv, report.html
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from harmony.bench.curves import ClientCurve, CurvePoint, MethodCurves
from harmony.bench.folder import require_writable, result_folder
from harmony.bench.result_files import CSV_FILE, REPORT_FILE, to_csv, write_result
from harmony.bench.results import Accuracy, BenchResult, BenchSettings, Versioned
from harmony.bench.runner import BenchEvent, bench
from harmony.core.config import TrainConfig, demo_config
from harmony.core.data import Dataset, load
from harmony.core.mix import RHOS
from harmony.core.partition import ClassesPerClient
from harmony.core.spec import Frozen

if TYPE_CHECKING:
    from harmony.export import ExportReport
    from harmony.train import Evaluation

Step = Literal["splitgp", "harmony", "evaluate", "export", "devices"]
Shown = Literal["splitgp", "harmony"]
METHODS: tuple[Shown, ...] = ("splitgp", "harmony")
LEAD = (
    "A federation of {clients} devices with {architectures} architectures, each holding {classes} of {all} classes of "
    "{data}, was trained twice with the same budget: by SplitGP and by HARMONY. HARMONY's devices were exported, and "
    "each ran in a process of its own with a cloud to ask."
)


class DemoSettings(Frozen):
    """out: the folder; seed: of everything random; fast: a tiny federation, in seconds, that shows no accuracy."""

    out: Path = Path("runs/demo")
    seed: int = 0
    fast: bool = False


class DemoEvent(Frozen):
    """Progress: `done` of `total` parts of a step are behind; detail: what is going on."""

    step: Step
    done: int
    total: int
    detail: str = ""


OnEvent = Callable[[DemoEvent], None]


class Parity(Frozen):
    """Largest |engine − eager PyTorch| of a bundle's program over its test vectors."""

    bundle: str
    engine: str
    max_error: float


class DemoResult(Versioned):
    """results.json of `harmony demo`. curves: by method; configs: the whole training config of each method."""

    FORMAT: ClassVar[str] = "harmony-demo"
    VERSION: ClassVar[int] = 1

    format: Literal["harmony-demo"] = "harmony-demo"
    format_version: Literal[1] = 1
    harmony_version: str
    seed: int
    fast: bool
    configs: dict[str, dict[str, Any]]
    curves: dict[str, MethodCurves]
    parity: tuple[Parity, ...]
    seconds: dict[Step, float]
    bench: BenchResult


def _config(method: Shown, settings: DemoSettings) -> TrainConfig:
    config = demo_config(method, settings.seed, fast=settings.fast)
    if not settings.fast:
        return config
    tiny = {
        "partition": ClassesPerClient(clients=2, classes=3, samples_per_class=60),
        "architectures": ("resnet-w8-d1", "mobilenet-w8-d1"),
        "back_end_width": 8,
        "steps": 2,
        "threads": 1,
        "harmony": config.harmony.model_copy(update={"personalize_epochs": 1}),
    }
    return config.model_copy(update=tiny)


def demo(settings: DemoSettings, on_event: OnEvent = lambda event: None) -> DemoResult:
    """Tell the whole story and write `settings.out`, whole or not at all; an earlier demo there is replaced.

    RunExists if something else than a demo is there. Nothing that it starts outlives it, however it ends.
    """
    require_writable(settings.out, DemoResult.FORMAT, replace=True)
    with result_folder(settings.out, DemoResult.FORMAT, replace=True) as draft:
        story = _Story(settings, draft, on_event)
        story.train()
        story.evaluate()
        story.export()
        return story.report(story.devices())


class _Story:
    """The steps in order. Training and export need torch, so they are imported when their turn comes."""

    def __init__(self, settings: DemoSettings, draft: Path, on_event: OnEvent) -> None:
        self._settings, self._draft, self._on_event = settings, draft, on_event
        self._configs = {method: _config(method, settings) for method in METHODS}
        self._dataset = load(self._configs["harmony"].data.name)
        self._curves: dict[str, MethodCurves] = {}
        self._exports: Sequence[ExportReport] = ()
        self._seconds: dict[Step, float] = {}

    def train(self) -> None:
        """SplitGP and HARMONY side by side, each into a run folder of its own."""
        from harmony.train import Progress, train_side_by_side  # noqa: PLC0415

        def follow(name: str, now: Progress) -> None:
            losses = ", ".join(f"{term} {value:.2f}" for term, value in now.losses.items())
            self._tell(cast(Shown, name), now.done, now.rounds, losses)

        for method, config in self._configs.items():
            self._tell(method, 0, config.rounds)
        jobs: dict[str, tuple[TrainConfig, Path]] = {
            method: (config, self._draft / method) for method, config in self._configs.items()
        }
        seconds = train_side_by_side(jobs, follow)
        self._seconds |= {method: seconds[method] for method in METHODS}

    def evaluate(self) -> None:
        """Both methods over every ρ."""
        from harmony.train import evaluate  # noqa: PLC0415

        clients = sum(config.partition.clients for config in self._configs.values())
        with self._step("evaluate", clients):
            for index, (method, config) in enumerate(self._configs.items()):
                before = index * config.partition.clients

                def follow(done: int, total: int, before: int = before) -> None:
                    self._tell("evaluate", before + done, 2 * total)

                found = evaluate(
                    self._draft / method / "checkpoint",
                    self._dataset,
                    rhos=RHOS,
                    seed=config.seed,
                    on_client=follow,
                )
                self._curves[method] = to_curves(found)

    def export(self) -> None:
        """HARMONY's clients and back end. Lowering to ExecuTorch takes longer than all of --fast, which omits it."""
        from harmony.export import export_run  # noqa: PLC0415

        with self._step("export", 1):
            self._exports = export_run(
                self._draft / "harmony",
                self._bundles,
                formats=("onnx",) if self._settings.fast else ("onnx", "executorch"),
                jobs=1 if self._settings.fast else 2,
                on_event=lambda what, done, total: self._tell("export", done, total, what),
            )

    def devices(self) -> BenchResult:
        """Serve the back end and run every device over its mixed stream; the service is drained at the end."""
        config = self._configs["harmony"]
        names = [f"client-{index:03d}" for index in range(config.partition.clients)]
        settings = BenchSettings(
            bundles=tuple(self._bundles / name for name in names),
            cloud=self._bundles / "cloud",
            rhos=RHOS,
            seed=config.seed,
            limit=60 if self._settings.fast else None,
            rounds=2 if self._settings.fast else 5,
            links=("wifi", "lte", "4g", "3g"),
        )

        def follow(event: BenchEvent) -> None:
            self._tell("devices", event.done, event.total, f"{event.step} {event.bundle or ''}".strip())

        with self._step("devices", 1):
            result = bench(settings, follow)
        final = self._settings.out / "bundles"  # not the draft, which is gone by the time that somebody reads this
        named = {"bundles": tuple(final / name for name in names), "cloud": final / "cloud"}
        return result.model_copy(update={"settings": settings.model_copy(update=named)})

    def report(self, measured: BenchResult) -> DemoResult:
        """Write the results into the draft."""
        from harmony.bench.report import write_report  # noqa: PLC0415

        result = DemoResult(
            harmony_version=version("harmony-sfl"),
            seed=self._settings.seed,
            fast=self._settings.fast,
            configs={method: config.model_dump(mode="json") for method, config in self._configs.items()},
            curves=self._curves,
            parity=tuple(
                Parity(bundle=one.bundle.name, engine=engine.engine, max_error=engine.max_error)
                for one in self._exports
                for engine in one.engines
            ),
            seconds=self._seconds,
            bench=measured,
        )
        write_result(self._draft, result)
        (self._draft / CSV_FILE).write_text(to_csv(measured))
        write_report(
            self._draft / REPORT_FILE,
            "HARMONY demo",
            measured,
            curves=self._curves,
            lead=_lead(self._configs["harmony"], self._dataset, measured),
            provenance=_provenance(result),
        )
        return result

    @property
    def _bundles(self) -> Path:
        return self._draft / "bundles"

    @contextmanager
    def _step(self, step: Step, total: int) -> Iterator[None]:
        self._tell(step, 0, total)
        start = time.perf_counter()
        yield
        self._seconds[step] = time.perf_counter() - start

    def _tell(self, step: Step, done: int, total: int, detail: str = "") -> None:
        self._on_event(DemoEvent(step=step, done=done, total=total, detail=detail))


def to_curves(found: Evaluation) -> MethodCurves:
    """What training's evaluation says, in the report's terms. Thresholds follow the stream, as devices' do."""
    return MethodCurves(
        clients=tuple(
            ClientCurve(
                client=client.client,
                architecture=client.architecture,
                points=tuple(
                    CurvePoint(
                        rho=one.rho,
                        accuracy=Accuracy(
                            overall=one.overall if one.adaptive is None else one.adaptive,
                            id=one.id if one.adaptive_id is None else one.adaptive_id,
                            ood=one.ood if one.adaptive_ood is None else one.adaptive_ood,
                            client=one.client_only,
                            server=one.server_only,
                            oracle=one.oracle,
                        ),
                    )
                    for one in client.curve
                ),
            )
            for client in found.clients
        )
    )


def _lead(config: TrainConfig, dataset: Dataset, measured: BenchResult) -> str:
    own = {len(one.own_classes) for one in measured.bundles}
    return LEAD.format(
        clients=config.partition.clients,
        architectures=len(set(config.architectures)),
        classes="/".join(map(str, sorted(own))),
        all=dataset.classes,
        data=dataset.name,
    )


def _provenance(result: DemoResult) -> dict[str, str]:
    worst: dict[str, float] = {}
    for one in result.parity:
        worst[one.engine] = max(one.max_error, worst.get(one.engine, 0.0))
    config = result.configs["harmony"]
    return {
        "seed": str(result.seed),
        "training": f"{config['rounds']} rounds of {config['steps']} batches of {config['batch']} images a client",
        "parity": ", ".join(f"{engine}: largest error {error:.1e}" for engine, error in worst.items()),
        "time": ", ".join(f"{step} {seconds:.0f} s" for step, seconds in result.seconds.items()),
    }
