"""`harmony infer`: answers to image files, from the device or from the cloud."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from harmony.cli.trust import Trusted, read_trust

if TYPE_CHECKING:
    from harmony.core.bundle import DeviceManifest
    from harmony.device import Answer, FallbackClient


def infer(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A device bundle, as harmony export wrote it.")],
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT…", help="Images: .png, .jpg, or .npy (H, W, C).")],
    *,
    server: Annotated[str | None, typer.Option(metavar="URL", help="The fallback; without it exit 2 decides.")] = None,
    key: Annotated[str | None, typer.Option(help="API key of the service; better in HARMONY_KEY.")] = None,
    engine: Annotated[
        Literal["onnxruntime", "native", "executorch", "auto"],
        typer.Option(help="What runs the front end; native is built when first used; auto: what is there."),
    ] = "onnxruntime",
    threshold: Annotated[
        Literal["adaptive", "fixed"],
        typer.Option(help="Exit 2's: follows the images of this call (docs/bundle.md), or not."),
    ] = "adaptive",
    trust: Trusted = None,
    deadline: Annotated[float, typer.Option(metavar="S", help="Seconds for one question to the cloud.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")] = False,
) -> None:
    """Answer images: leave at the first exit that is sure enough, else ask the cloud.

    \b
    harmony infer bundles/client-000 shoe.png                    the device alone
    HARMONY_KEY=… harmony infer bundles/client-000 *.png --server http://127.0.0.1:8080
    harmony infer bundles/client-000 window.npy --json           arrays too

    Where the cloud is away, slow or wrong, the device's own answer stands, marked degraded, with the reason.
    """
    from harmony.core.bundle import open_device_bundle
    from harmony.device import Device, open_engine
    from harmony.device.decision import with_threshold
    from harmony.device.images import read_image

    manifest = with_threshold(open_device_bundle(bundle, read_trust(trust)), threshold)
    images = [read_image(path, manifest.image) for path in inputs]
    with ExitStack() as stack:
        fallback = None
        if server is not None:
            fallback = stack.enter_context(_fallback(server, key, manifest, deadline))
        device = Device(manifest, open_engine(bundle, manifest, engine), fallback)
        answers = [device.answer(image) for image in images]
    _print(inputs, answers, as_json=as_json)


def _fallback(server: str, key: str | None, manifest: DeviceManifest, deadline: float) -> FallbackClient:
    """A client whose service has the same cut contract, or cannot be reached now: then answers are degraded."""
    from contextlib import suppress

    from harmony.core.errors import CloudTimeout, CloudUnreachable
    from harmony.device import FallbackClient

    client = FallbackClient(server, key or os.environ.get("HARMONY_KEY"), manifest=manifest, deadline_s=deadline)
    with suppress(CloudUnreachable, CloudTimeout):
        client.check()
    return client


def _print(inputs: list[Path], answers: list[Answer], *, as_json: bool) -> None:
    from dataclasses import asdict

    from harmony.cli.output import print_json, print_table

    if as_json:
        print_json([{"input": str(path)} | asdict(answer) for path, answer in zip(inputs, answers, strict=True)])
        return
    rows = [
        (path, one.class_name, one.exit, f"{one.probability:.3f}", f"{1e3 * one.seconds:.2f}", _note(one))
        for path, one in zip(inputs, answers, strict=True)
    ]
    print_table("Answers", ("input", "class", "exit", "confidence", "ms", "note"), rows)


def _note(answer: Answer) -> str:
    if answer.degraded:
        return f"degraded: {answer.reason}"
    return "unsure; no cloud given" if answer.would_offload and answer.exit != "cloud" else ""
