"""What runs on the phone: engines, early-exit loop, exit gate, fallback client. No torch."""

from typing import TYPE_CHECKING

from harmony.device.answer import Answer, CloudAnswer, Fallback
from harmony.device.engine import Engine, open_engine
from harmony.device.runner import Device

if TYPE_CHECKING:
    from harmony.device.check import VerifyReport, verify
    from harmony.device.fallback import FallbackClient

__all__ = [
    "Answer",
    "CloudAnswer",
    "Device",
    "Engine",
    "Fallback",
    "FallbackClient",
    "VerifyReport",
    "open_engine",
    "verify",
]


def __getattr__(name: str) -> object:
    """The client and the check, loaded when they are asked for: a device without a cloud carries no HTTP client."""
    if name == "FallbackClient":
        from harmony.device.fallback import FallbackClient  # noqa: PLC0415

        return FallbackClient
    if name in ("VerifyReport", "verify"):
        from harmony.device import check  # noqa: PLC0415

        return getattr(check, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
