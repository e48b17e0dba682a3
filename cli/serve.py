"""`harmony serve`: the fallback service."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from harmony.cli.extras import require
from harmony.cli.trust import Trusted, read_trust
from harmony.core.errors import ConfigError

if TYPE_CHECKING:
    from harmony.cloud.server import Announcement
    from harmony.cloud.source import Place

Level = Literal["debug", "info", "warning", "error"]
Engine = Literal["onnxruntime", "torch", "torch-bf16"]


def serve(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="[DIR]", help="A run, what harmony export wrote, a cloud bundle, or several."),
    ] = None,
    *,
    registry: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Serve a registry: a folder, or a database URL. Also HARMONY_REGISTRY."),
    ] = None,
    store: Annotated[
        Path | None, typer.Option(envvar="HARMONY_STORE", help="Folder of the registry's bundles, if it is another.")
    ] = None,
    trust: Trusted = None,
    engine: Annotated[
        Engine, typer.Option(help="What runs the back end; torch takes a run's own weights, bf16 if the CPU has it.")
    ] = "onnxruntime",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for a free one.")] = 8080,
    key: Annotated[
        list[str] | None, typer.Option(help="A key that may ask; repeatable. Also HARMONY_KEY, HARMONY_KEYS=A,B.")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(help="One key a line, or sha256:HEX of it.")] = None,
    no_key: Annotated[bool, typer.Option("--no-key", help="Let everybody on this machine ask.")] = False,
    max_body: Annotated[int, typer.Option(metavar="BYTES", help="Largest body, also after decompression.")] = 16 << 20,
    max_connections: Annotated[
        int, typer.Option(help="Open at once, of each worker; above it, those are closed that ask nothing.")
    ] = 4096,
    max_batch: Annotated[int, typer.Option(help="Most samples in a request, and in a run of the model.")] = 32,
    queue_seconds: Annotated[float, typer.Option(help="Refuse (503) what would wait longer than this.")] = 0.5,
    body_seconds: Annotated[
        float, typer.Option(help="Refuse (408) a body that takes longer to arrive; more for slow links.")
    ] = 20.0,
    drain_seconds: Annotated[int, typer.Option(help="On a stop, wait this long for answers under way.")] = 8,
    workers: Annotated[int, typer.Option(help="Processes that share the port.")] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="On Ray Serve with its HAProxy, instead of our server.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(metavar="PEM", help="Speak https: certificate and chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="PEM", help="The certificate's key.")] = None,
    otel: Annotated[
        bool, typer.Option("--otel", help="A span a batch, to where OTEL_EXPORTER_OTLP_ENDPOINT says.")
    ] = False,
    log_level: Annotated[Level, typer.Option(help="JSON lines on stderr, from this level on.")] = "warning",
    until_stdin_ends: Annotated[
        bool, typer.Option("--until-stdin-ends", help="Stop too when stdin, a pipe, is closed by its other end.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON line once it listens.")] = False,
) -> None:
    """Serve the fallback over HTTP (Open Inference Protocol v2), until SIGTERM or Ctrl-C.

    \b
    harmony serve bundles/cloud                              on 127.0.0.1:8080, with a key that it makes and prints
    harmony serve bundles/ --port 0 --json                   any free port; {"url", "key", "models", "pid"} on stdout
    harmony serve bundles/cloud --host 0.0.0.0 --key-file keys.txt
    harmony serve bundles/cloud --workers 4 --tls-cert cert.pem --tls-key key.pem
    harmony serve runs/first                                 its back end is exported first, to runs/first/cloud
    harmony serve runs/first --engine torch-bf16             its weights in PyTorch, in bfloat16
    harmony serve bundles/cloud --trust release.pub          only what that key signed
    harmony serve bundles/cloud --ray --workers 4            four replicas on Ray Serve
    harmony serve --registry registry/                       versions, aliases, keys: see harmony registry, harmony keys
    curl -H "Authorization: Bearer KEY" http://127.0.0.1:8080/v2/models/backend

    Health (/v2/health/live, /v2/health/ready) needs no key; everything else, /metrics too, does. A key in
    HARMONY_ADMIN_KEY may also load and unload models.
    """
    require("cloud", *(["otel"] if otel else []), *(["ray"] if ray else []))
    from harmony.cli.back_end import servable
    from harmony.cloud.keys import digest, environment_admin_keys
    from harmony.cloud.logs import set_up_logs
    from harmony.cloud.server import leave
    from harmony.cloud.server import serve as run
    from harmony.cloud.settings import checked_settings
    from harmony.cloud.source import Place

    if folder is None:  # a URL with a password belongs there: arguments are visible to every user of the machine
        registry = registry or os.environ.get("HARMONY_REGISTRY")
    trusted = read_trust(trust)
    lines = () if trusted is None else tuple(one.line for one in trusted.keys)
    place = Place(None if folder is None else servable(folder), registry, store, lines, **_torch(folder, engine))
    given = _digests(key or [], key_file, no_key=no_key)
    admin = tuple(digest(one, where="HARMONY_ADMIN_KEY") for one in environment_admin_keys(os.environ))
    made, keys = (None, given) if _keeps_keys(place, no_key=no_key) else _made_key(given, no_key=no_key)
    settings = checked_settings(
        host=host,
        port=port,
        keys=keys,
        admin_keys=admin,
        max_body_bytes=max_body,
        max_connections=max_connections,
        max_batch=max_batch,
        queue_seconds=queue_seconds,
        body_seconds=body_seconds,
        drain_seconds=drain_seconds,
        workers=workers,
        otel=otel,
        tls_cert=tls_cert,
        tls_key=tls_key,
    )
    set_up_logs(log_level)

    def announce(said: Announcement) -> None:
        _announce(said, made, as_json=as_json, is_open=no_key)

    stop_with = sys.stdin.fileno() if until_stdin_ends else None
    if ray:
        from harmony.cloud.on_ray import serve_on_ray

        serve_on_ray(place, settings, announce, stop_with=stop_with)
    else:
        run(place, settings, announce, stop_with=stop_with, log_level=log_level)
    leave()


def _torch(folder: Path | None, engine: Engine) -> dict[str, Any]:
    """The checkpoint whose weights PyTorch runs, if it shall. ConfigError if there is none."""
    if engine == "onnxruntime":
        return {}
    require("train")
    from harmony.core.checkpoint import checkpoint_folder

    if folder is None or not (folder / "checkpoint").is_dir():
        raise ConfigError(
            "needs the weights of a run", where="--engine", mend="give a run's folder, as harmony train wrote"
        )
    return {"checkpoint": checkpoint_folder(folder), "bfloat16": engine == "torch-bf16"}


def _digests(keys: list[str], key_file: Path | None, *, no_key: bool) -> tuple[str, ...]:
    """Digests of every key that was given, by argument, environment or file."""
    from harmony.cloud.keys import digest, environment_keys, read_key_file

    found = [digest(one) for one in keys]
    found += [digest(one, where="HARMONY_KEY") for one in environment_keys(os.environ)]
    found += read_key_file(key_file) if key_file is not None else []
    if found and no_key:
        raise ConfigError("excludes every key, but keys are given", where="--no-key", mend="leave one of them out")
    return tuple(dict.fromkeys(found))


def _keeps_keys(place: Place, *, no_key: bool) -> bool:
    """Whether a registry has keys, so that none has to be made."""
    if place.registry is None:
        return False
    if no_key:
        raise ConfigError("a registry keeps keys", where="--no-key", mend="make one with 'harmony keys create'")
    with closing(place.open()) as source:
        return bool(source.wanted().grants)


def _made_key(given: tuple[str, ...], *, no_key: bool) -> tuple[str | None, tuple[str, ...]]:
    """(the key that was made, or None; the digests that count)."""
    from harmony.cloud.keys import digest, generate_key

    if given or no_key:
        return None, given
    made = generate_key()
    return made, (digest(made),)


def _announce(said: Announcement, key: str | None, *, as_json: bool, is_open: bool) -> None:
    import json

    if as_json:
        sys.stdout.write(json.dumps({"url": said.url, "key": key, "models": said.models, "pid": said.pid}) + "\n")
    else:
        sys.stdout.write(f"listening on {said.url}, models: {', '.join(said.models)}\n")
        if key is not None:
            sys.stdout.write(f"key, shown this once: {key}\n")
        elif is_open:
            sys.stdout.write("no key is needed\n")
    sys.stdout.flush()
