"""A device bundle's answers on an emulated core: instructions by the exit at which they leave.

What an answer costs depends on where it leaves and hardly on its image, so no images are needed: thresholds are moved
so that everything leaves at exit 1, then that nothing does, and noise is answered.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from harmony.bench.arm.calibration import calibrated, describe, nets, predict
from harmony.bench.arm.cores import CORES, Core, CoreName
from harmony.bench.arm.emulation import Counted, run_emulated
from harmony.bench.arm.environment import ArmEnvironment, open_environment
from harmony.bench.arm.results import ArmResult, BundleCount, NetCount, PathCount
from harmony.bench.devices import Device, ModelName
from harmony.bench.host import Watch
from harmony.bench.programs import digest_of_programs, read_programs
from harmony.bench.reference import reference_bundle
from harmony.core.bundle import DeviceManifest, EngineName, open_device_bundle
from harmony.core.errors import ConfigError, EngineError, EngineUnavailable
from harmony.core.sealed import MANIFEST, files_of, read_sealed

RUNS = 3
"""Answers a process. The first sets up, the others are alike."""
_VARIES = 1e-3
ALWAYS, NEVER = -1e30, 1e30
_EXPORT = {"executorch": "harmony export --format executorch", "onnxruntime": "harmony export --format onnx"}
_Place = tuple[Path, ArmEnvironment]


def count_bundles(
    bundles: Sequence[Path],
    *,
    core: CoreName | None = None,
    device: str | None = None,
    engine: EngineName = "executorch",
) -> ArmResult:
    """Count every bundle's answers. Either a core is named, or a device, for which milliseconds are predicted too.

    EngineUnavailable without the environment, or the bundle's files for the engine; ArtifactError; ConfigError.
    """
    known, core = _whose(device, core, engine)
    place, watch = open_environment(), Watch()
    if known is not None:
        _require_same_engine(place[1])
    counted = [_count(bundle, CORES[core], engine, place) for bundle in bundles]
    if known is not None:
        counted = [_with_times(one, known) for one in counted]
    return ArmResult(
        harmony_version=version("harmony-sfl"),
        device=device,
        calibration=None if known is None else describe(known, core),
        versions=place[1].versions,
        host=watch.host(),
        bundles=tuple(counted),
    )


def _whose(device: str | None, core: CoreName | None, engine: EngineName) -> tuple[Device | None, CoreName]:
    if device is None:
        if core is None:
            raise ConfigError("name a core or a device", where="--core", mend="for example --device pixel-3a")
        return None, core
    if engine != "executorch":
        mend = "give --core instead: instructions without milliseconds"
        raise ConfigError(f"is calibrated for XNNPACK, not for {engine}", where="--device", mend=mend)
    return calibrated(device, core)


def _require_same_engine(environment: ArmEnvironment) -> None:
    """Other kernels would take other numbers of instructions for the reference, too."""
    then, now = nets().versions["executorch"], environment.versions["executorch"]
    if then != now:
        mend = "python -m harmony.bench.arm.validate --publish, or give --core instead"
        raise ConfigError(f"was calibrated with executorch {then}, here is {now}", where="--device", mend=mend)


def _count(bundle: Path, core: Core, engine: EngineName, place: _Place) -> BundleCount:
    manifest = open_device_bundle(bundle)
    if engine not in manifest.engines:
        raise EngineUnavailable(f"has no files for {engine}", where=bundle, mend=_EXPORT[engine])
    programs = read_programs(bundle, manifest, engine)
    with tempfile.TemporaryDirectory(prefix="harmony-arm-") as work:
        for name, content in programs.items():
            (Path(work) / name).write_bytes(content)
        if engine == "executorch":
            opening, paths = _count_device(bundle, manifest, core, place, Path(work))
        else:
            opening, paths = _count_onnx(manifest, core, place, Path(work))
    return BundleCount(
        name=bundle.name,
        architecture=str(manifest.architecture),
        parameters=manifest.parameters,
        engine=engine,
        precision=manifest.precision,
        core=core.name,
        program=digest_of_programs(programs),
        opening=opening,
        paths=tuple(paths),
    )


def _count_device(
    bundle: Path, manifest: DeviceManifest, core: Core, place: _Place, work: Path
) -> tuple[int, list[PathCount]]:
    """The whole loop of the native core, from the image to the decision, and to the frame if nothing was sure."""
    program = manifest.engines["executorch"]["program"]
    runs = {}
    for name, threshold in (("exit1", ALWAYS), ("exit2", NEVER)):
        (work / f"{name}.json").write_bytes(_with_thresholds(_manifest_of(bundle), threshold))
        runs[name] = _run(place, core, ["count-executorch", f"{name}.json", program, str(RUNS)], work)
    leaving, staying = (runs[name].between for name in ("exit1", "exit2"))
    engine1, engine2 = leaving[-2:]
    frame = staying[-3]
    first2, hot2 = staying[1], _hot(staying[2:-3])
    first1, hot1 = leaving[1], _hot(leaving[2:-2])
    return leaving[0], [
        PathCount(path="exit1", instructions=hot1, first=first1, engine=engine1),
        PathCount(path="exit2", instructions=hot2, first=first2, engine=engine1 + engine2),
        PathCount(path="cloud", instructions=hot2 + frame, first=first2 + frame, engine=engine1 + engine2),
    ]


def count_reference(model: ModelName, core: Core, place: _Place, work: Path) -> NetCount:
    """A published net inside the engine, which is what others publish. work: a folder for files. The first inference is
    taken from the first answer, less what an answer has around the engine.
    """
    bundle = reference_bundle(model, "executorch")
    manifest = open_device_bundle(bundle)
    program = manifest.engines["executorch"]["program"]
    (work / program).write_bytes(read_sealed(bundle, manifest, program))
    (work / "exit1.json").write_bytes(_with_thresholds(_manifest_of(bundle), ALWAYS))
    between = _run(place, core, ["count-executorch", "exit1.json", program, "2"], work).between
    _, first, hot, engine, _ = between
    first -= hot - engine
    return NetCount(net=model, core=core.name, parameters=manifest.parameters, hot=engine, first=first)


def _count_onnx(manifest: DeviceManifest, core: Core, place: _Place, work: Path) -> tuple[int, list[PathCount]]:
    """The bare engine calls: around them there is Python, whose instructions say nothing about the bundle."""
    image, roles = manifest.image, manifest.engines["onnxruntime"]
    sizes = [str(size) for size in (image.channels, image.height, image.width, int(manifest.gate), RUNS)]
    between = _run(place, core, ["count-onnxruntime", roles["exit1"], roles["exit2"], *sizes], work).between
    # How it allocates depends on what it allocated before, so later runs differ by 0.1 %; every process runs the same.
    (first1, *_, hot1), (first2, *_, hot2) = between[1 : 1 + RUNS], between[1 + RUNS :]
    return between[0], [
        PathCount(path="exit1", instructions=hot1, first=first1, engine=hot1),
        PathCount(path="exit2", instructions=hot1 + hot2, first=first1 + first2, engine=hot1 + hot2),
    ]


def _manifest_of(bundle: Path) -> bytes:
    """The manifest's bytes, of a folder or a .tar; its hash was checked when the bundle was opened."""
    with files_of(bundle).open(MANIFEST) as stream:
        return stream.read()


def _with_thresholds(manifest: bytes, threshold: float) -> bytes:
    """The same manifest with other thresholds. They do not follow the stream: else nothing would be sent until it looks
    foreign. The program trusts it, since we give it from memory."""
    document = json.loads(manifest)
    document.pop("held_out", None)
    for leaving in document["exits"]:
        leaving["threshold"] = threshold
    return json.dumps(document).encode()


def _run(place: _Place, core: Core, command: list[str], work: Path) -> Counted:
    folder, environment = place
    counted = run_emulated(folder, environment, core, command, work)
    scores = json.loads(counted.output)["scores"]
    if scores[0] == scores[1]:
        # A net whose signal died out would be counted as well, but might be computed with other care than a live one.
        raise EngineError("gives the same score to different images", where=command[-2], mend="is it trained?")
    return counted


def _hot(counts: Sequence[int]) -> int:
    """The last count of equal work. What the scores are decides over some tens of instructions; EngineError if it is
    more than that."""
    if max(counts) - min(counts) > _VARIES * max(counts):
        raise EngineError(f"counts of equal work differ: {', '.join(map(str, counts))}", where="emulation")
    return counts[-1]


def _with_times(count: BundleCount, device: Device) -> BundleCount:
    if count.precision != device.reference.precision:
        problem = f"is {count.precision}, and {device.name} is calibrated in {device.reference.precision}"
        raise ConfigError(problem, where=count.name, mend="give --core instead: instructions without milliseconds")
    paths = [
        path.model_copy(update={"predicted": predict(path.instructions, count.parameters, device, count.core)})
        for path in count.paths
    ]
    return count.model_copy(update={"paths": tuple(paths)})
