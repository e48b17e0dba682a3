"""What can be set about the service, with its bounds."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field, ValidationError

from harmony.core.errors import ConfigError
from harmony.core.sealed import Sha256
from harmony.core.spec import Frozen

MIB = 1 << 20


class ServiceSettings(Frozen):
    """Limits, budgets and keys of one service. Sizes in bytes, times in seconds.

    keys: SHA-256 of every key that may ask; none means that everybody may, which is for loopback only.
    admin_keys: SHA-256 of every key that may also load, unload and read the audit log.
    max_json_bytes: JSON is parsed on the event loop into Python objects, so it has a tighter bound than binary tensors.
    queue_seconds: a request is refused when the work ahead of it is estimated to take longer.
    max_inflight_bytes: bodies that are being read or wait, all together.
    max_connections: open at once, of each worker; above it, those are closed that ask nothing.
    workers: processes that share the port; the limits of bytes and queues are each worker's own.
    otel: a span a batch, to where OpenTelemetry's environment variables say.
    tls_cert, tls_key: PEM files, the certificate with its chain and its key; both or none.
    """

    host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    keys: tuple[Sha256, ...] = ()
    admin_keys: tuple[Sha256, ...] = ()
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 16 * MIB
    max_json_bytes: Annotated[int, Field(ge=1024, le=64 * MIB)] = 4 * MIB
    max_inflight_bytes: Annotated[int, Field(ge=1024)] = 256 * MIB
    max_connections: Annotated[int, Field(ge=16, le=1 << 16)] = 4096
    max_batch: Annotated[int, Field(ge=1, le=1024)] = 32
    queue_seconds: Annotated[float, Field(gt=0, le=60)] = 0.5
    body_seconds: Annotated[float, Field(gt=0, le=600)] = 20.0
    drain_seconds: Annotated[int, Field(ge=1, le=600)] = 8
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    otel: bool = False
    tls_cert: Path | None = None
    tls_key: Path | None = None

    @property
    def scheme(self) -> str:
        """http or https."""
        return "http" if self.tls_cert is None else "https"

    def require_tls(self) -> None:
        """ConfigError unless the certificate and the key are both there and belong together, or neither is given."""
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("goes with --tls-key, and the other way round", where="--tls-cert", mend="give both")
        if self.tls_cert is None or self.tls_key is None:
            return
        try:  # a key with a passphrase must not make the service ask the terminal for it
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.tls_cert, self.tls_key, lambda: "")
        except FileNotFoundError:
            missing = self.tls_key if self.tls_cert.is_file() else self.tls_cert
            raise ConfigError("no such file", where=missing, mend="check --tls-cert and --tls-key") from None
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"cannot be used with the key {self.tls_key}: {getattr(error, 'reason', None) or error}",
                where=self.tls_cert,
                mend="give PEM files that belong together, the key without a passphrase",
            ) from None

    def require_safe(self, kept: Sequence[object] = ()) -> None:
        """ConfigError if the service would listen beyond this machine and let everybody in. kept: of a registry."""
        if not (self.keys or self.admin_keys or kept) and not is_loopback(self.host):
            raise ConfigError(
                f"listening on {self.host} without keys would let everybody in",
                where="--host",
                mend="give --key, or listen on 127.0.0.1",
            )


def checked_settings(**values: Any) -> ServiceSettings:
    """Settings from a caller's values; ConfigError, naming the field, for one that is out of bounds."""
    try:
        return ServiceSettings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ConfigError(first["msg"], where="settings of the service", field=field) from None


def names_this_machine(authority: bytes | None) -> bool:
    """Whether `HOST[:PORT]`, as in a Host header or after the // of an Origin, is this machine's loopback."""
    if authority is None:
        return True
    try:
        host = urlsplit(b"//" + authority).hostname
        return host is not None and is_loopback(host.decode())
    except ValueError:  # not even a name
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name other than localhost counts as reachable from elsewhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
