"""`harmony inspect`: what is in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from harmony.cli.trust import Trusted, read_trust

if TYPE_CHECKING:
    from harmony.core.bundle import CloudManifest, DeviceManifest
    from harmony.core.inspection import Inspection, ProgramInfo


_MOST_CLASSES = 100
"""Above this many, a table shows the own ones alone; --json has all."""


def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A device or cloud bundle, a folder or a .tar.")],
    *,
    trust: Trusted = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")] = False,
) -> None:
    """Show what is in a bundle: where it comes from, classes, exits, files, and the operators of every graph.

    \b
    harmony inspect bundles/client-000
    harmony inspect client-000.tar --trust release.pub
    harmony inspect bundles/cloud --json

    Every byte is checked, nothing is run: harmony verify does that. Planned memory is what an ExecuTorch program asks
    for its activations; what XNNPACK allocates itself, and what ONNX Runtime will plan, is known only to them.
    """
    from harmony.core.inspection import inspect as look

    found = look(bundle, read_trust(trust))
    if as_json:
        _print_json(found)
    else:
        _print(found)


def _print_json(found: Inspection) -> None:
    from dataclasses import asdict

    from harmony.cli.output import print_json

    manifest = found.manifest.model_dump(mode="json")
    programs = [asdict(one) for one in found.programs]
    print_json({**vars(found), "bundle": str(found.bundle), "manifest": manifest, "programs": programs})


def _print(found: Inspection) -> None:
    from harmony.cli.output import print_table
    from harmony.core.bundle import DeviceManifest

    print_table(str(found.bundle), ("fact", "value"), _facts(found))
    if isinstance(found.manifest, DeviceManifest):
        classes = found.manifest.classes
        shown = range(len(classes.names)) if len(classes.names) <= _MOST_CLASSES else classes.own
        rows = [
            (classes.names[label], label, classes.tokens[label], "own" if label in classes.own else "")
            for label in shown
        ]
        print_table(
            f"Classes ({len(classes.own)} of {len(classes.names)} own)",
            ("class", "label", "token", "held by this device"),
            rows,
        )
    print_table("Files", ("file", "bytes"), [(name, f"{size:,}") for name, size in found.files.items()])
    print_table("Graphs", ("graph", "file", "operators", "delegated", "planned"), map(_graph, found.programs))
    for one in found.programs:
        counts = ", ".join(f"{count} {name}" for name, count in one.operators.items())
        typer.echo(f"{one.engine} {one.name}: {counts}")


def _graph(one: ProgramInfo) -> tuple[Any, ...]:
    share = "–" if one.delegated is None else f"{one.delegated:.0%}"
    planned = "–" if one.planned_bytes is None else f"{one.planned_bytes:,} bytes"
    return f"{one.engine} {one.name}", one.file, sum(one.operators.values()), share, planned


def _facts(found: Inspection) -> list[tuple[str, object]]:
    from harmony.core.bundle import DeviceManifest

    manifest = found.manifest
    shared: list[tuple[str, object]] = [
        ("kind", f"{manifest.format} {manifest.format_version}"),
        ("run", f"{manifest.run} ({manifest.method}, harmony {manifest.harmony_version})"),
        ("manifest", found.digest),
        ("checkpoint", manifest.checkpoint or "–"),
        ("signed by", _signed(found)),
        ("parameters", f"{manifest.parameters:,}"),
        ("feature", manifest.feature),
    ]
    return shared + (_of_device(manifest) if isinstance(manifest, DeviceManifest) else _of_cloud(manifest))


def _signed(found: Inspection) -> str:
    if not found.signed:
        return "nobody"
    return f"{', '.join(found.signed)} ({'trusted' if found.trusted else 'not checked'})"


def _of_device(manifest: DeviceManifest) -> list[tuple[str, object]]:
    return [
        ("client", f"{manifest.client} of {manifest.dataset}"),
        ("architecture", manifest.architecture),
        ("image", manifest.image),
        ("precision", manifest.precision),
        *((one.name, f"leaves if {one.score} ≥ {one.threshold:.4g}") for one in manifest.exits),
        ("threshold", _following(manifest)),
        ("fallback", f"model {manifest.fallback.model}, {manifest.fallback.codec} on the wire"),
        ("learns", _learning(manifest)),
        ("personal", _personal(manifest)),
    ]


def _learning(manifest: DeviceManifest) -> str:
    if manifest.training is None:
        return "nothing"
    heads = f"heads ({', '.join(manifest.training.head)})"
    return heads if manifest.training.front_end is None else f"{heads}, front end (onnxruntime)"


def _personal(manifest: DeviceManifest) -> str:
    told = manifest.personal
    if told is None:
        return "no, as it was exported"
    images, right = f"{told.train_images:,} images", f"{told.before:.1%} to {told.after:.1%} right"
    return f"version {told.version}: {told.what}, {images}, {right}"


def _following(manifest: DeviceManifest) -> str:
    if manifest.held_out is None:
        return "fixed"
    return f"exit 2's follows the stream, by {manifest.held_out.images:,} held-out images"


def _of_cloud(manifest: CloudManifest) -> list[tuple[str, object]]:
    return [("model", manifest.model), ("tokens", manifest.tokens)]
