"""One runtime in a process of its own: `python -P worker.py NAME FOLDER`, by an interpreter that has the runtime.

FOLDER holds images.npy (n, C, H, W), scaled, and what the runtime loads. The process answers all images, writes the
outputs to NAME.npz and what its start took to NAME.json, then, for every line "COUNT" that it is sent, answers so many
images by exit 1, and so many by both exits, and says the CPU seconds of each.

It stands alone, since a peer's environment holds neither HARMONY nor torch; only our own engines import HARMONY.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Run = Callable[[Any], list[Any]]
EXITS = ("exit1", "exit2")


class Loaded(NamedTuple):
    """A runtime that is ready. exit1: image (1, C, H, W) → hidden, logits[, gate]; exit2: hidden → feature, …"""

    exit1: Run
    exit2: Run
    version: str


def ours(folder: Path, engine: str) -> Loaded:
    """An engine of `harmony.device`, on the bundle."""
    from importlib.metadata import version  # noqa: PLC0415  (the runtime's start is what is measured)

    from harmony.core.bundle import open_device_bundle  # noqa: PLC0415
    from harmony.device.engine import open_engine  # noqa: PLC0415

    bundle = Path((folder / "bundle").read_text())
    opened = open_engine(bundle, open_device_bundle(bundle), engine)  # type: ignore[arg-type]
    return Loaded(
        lambda image: [one for one in opened.exit1(image) if one is not None],
        lambda hidden: [one for one in opened.exit2(hidden) if one is not None],
        version("harmony-sfl"),
    )


def plain_onnxruntime(folder: Path) -> Loaded:
    """ONNX Runtime as anybody would call it, on one thread."""
    import onnxruntime  # noqa: PLC0415

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1

    def opened(name: str) -> Run:
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
        port = session.get_inputs()[0].name
        return lambda value: list(session.run(None, {port: value}))

    return Loaded(opened("exit1"), opened("exit2"), onnxruntime.__version__)


def openvino(folder: Path) -> Loaded:
    """OpenVINO, which reads the ONNX files; in fp32, where it would else choose bfloat16 on some processors."""
    import openvino as runtime  # noqa: PLC0415

    core = runtime.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}

    def opened(name: str) -> Run:
        model = core.compile_model(core.read_model(folder / f"{name}.onnx"), "CPU", settings)
        request, count = model.create_infer_request(), len(model.outputs)

        def run(value: Any) -> list[Any]:
            request.infer([value], share_inputs=True)
            return [request.get_output_tensor(at).data for at in range(count)]

        return run

    return Loaded(opened("exit1"), opened("exit2"), runtime.__version__.partition("-")[0])


def ncnn(folder: Path) -> Loaded:
    """ncnn, on what pnnx made of the ONNX files; without the half precision that it would else store weights in."""
    import ncnn as runtime  # noqa: PLC0415

    def opened(name: str) -> Run:
        net = runtime.Net()
        net.opt.num_threads = 1
        for half in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
            setattr(net.opt, half, False)
        if net.load_param(str(folder / f"{name}.ncnn.param")) or net.load_model(str(folder / f"{name}.ncnn.bin")):
            raise RuntimeError(f"ncnn does not load {name}")
        outputs = sorted(one for one in net.output_names() if one.startswith("out"))

        def run(value: Any) -> list[Any]:
            extractor, given = net.create_extractor(), runtime.Mat(value[0])
            extractor.input("in0", given)
            return [np.array(extractor.extract(one)[1])[None] for one in outputs]

        return run

    return Loaded(opened("exit1"), opened("exit2"), runtime.__version__)


def litert(folder: Path) -> Loaded:
    """LiteRT (which was TensorFlow Lite), on what litert-torch made of the network itself."""
    from importlib.metadata import version  # noqa: PLC0415

    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415

    def opened(name: str) -> Run:
        model = Interpreter(str(folder / f"{name}.tflite"), num_threads=1)
        model.allocate_tensors()
        (given,), outputs = model.get_input_details(), model.get_output_details()

        def run(value: Any) -> list[Any]:
            model.set_tensor(given["index"], value)
            model.invoke()
            return [model.get_tensor(one["index"]) for one in outputs]

        return run

    return Loaded(opened("exit1"), opened("exit2"), version("ai-edge-litert"))


def eager_torch(folder: Path) -> Loaded:
    """The network itself, of the run that the bundle was exported from."""
    import torch  # noqa: PLC0415

    from harmony.bench.peers.eager import segments  # noqa: PLC0415

    torch.set_num_threads(1)
    job = json.loads((folder / "run.json").read_text())
    first, second = segments(Path(job["run"]), job["client"])

    def opened(segment: Any) -> Run:
        def run(value: Any) -> list[Any]:
            with torch.inference_mode():
                return [one.numpy() for one in segment(torch.from_numpy(value))]

        return run

    return Loaded(opened(first), opened(second), torch.__version__)


RUNTIMES: Mapping[str, Callable[[Path], Loaded]] = {
    "harmony onnxruntime": lambda folder: ours(folder, "onnxruntime"),
    "harmony native": lambda folder: ours(folder, "native"),
    "executorch": lambda folder: ours(folder, "executorch"),
    "onnxruntime": plain_onnxruntime,
    "openvino": openvino,
    "ncnn": ncnn,
    "litert": litert,
    "torch": eager_torch,
}


def cpu_seconds(loaded: Loaded, images: Any, count: int) -> dict[str, float]:
    """Of `count` images by exit 1 alone, and of as many by both exits."""
    chosen = [images[at % len(images)] for at in range(count)]
    begin = time.process_time()
    for image in chosen:
        loaded.exit1(image)
    middle = time.process_time()
    for image in chosen:
        loaded.exit2(loaded.exit1(image)[0])
    return {"exit1": middle - begin, "exit2": time.process_time() - middle}


def peak_bytes() -> int:
    """Most memory that this process ever had in RAM (VmHWM, proc(5)); 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def main() -> None:
    """Run the process."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    images = [np.ascontiguousarray(one[None]) for one in np.load(folder / "images.npy")]
    loaded = RUNTIMES[name](folder)
    loaded.exit2(loaded.exit1(images[0])[0])
    start = {"cpu_s": time.process_time(), "version": loaded.version}
    rows = []
    for image in images:
        first = [np.array(one) for one in loaded.exit1(image)]
        rows.append([*first, *(np.array(one) for one in loaded.exit2(first[0]))])
    columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
    np.savez(folder / f"{name}.npz", *columns)
    (folder / f"{name}.json").write_text(json.dumps(start | {"peak_bytes": peak_bytes()}))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        sys.stdout.write(json.dumps(cpu_seconds(loaded, images, int(line))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
