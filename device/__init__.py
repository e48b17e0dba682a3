"""What runs on the phone: engines, early-exit loop, exit gate, fallback client. No torch."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from harmony.device.answer import Answer, CloudAnswer, Fallback
    from harmony.device.async_fallback import AsyncFallbackClient
    from harmony.device.check import VerifyReport, verify
    from harmony.device.circuit import CircuitSettings
    from harmony.device.engine import Engine, open_engine
    from harmony.device.fallback import FallbackClient
    from harmony.device.later import LateAnswer, Later
    from harmony.device.runner import Device

__all__ = [
    "Answer",
    "AsyncFallbackClient",
    "CircuitSettings",
    "CloudAnswer",
    "Device",
    "Engine",
    "Fallback",
    "FallbackClient",
    "LateAnswer",
    "Later",
    "VerifyReport",
    "open_engine",
    "verify",
]
_WHEN_ASKED = {
    "Answer": "answer",
    "AsyncFallbackClient": "async_fallback",
    "CircuitSettings": "circuit",
    "CloudAnswer": "answer",
    "Device": "runner",
    "Engine": "engine",
    "Fallback": "answer",
    "FallbackClient": "fallback",
    "LateAnswer": "later",
    "Later": "later",
    "VerifyReport": "check",
    "open_engine": "engine",
    "verify": "check",
}


def __getattr__(name: str) -> object:
    """What is loaded when it is asked for: a device without a cloud carries no HTTP client."""
    if name in _WHEN_ASKED:
        return getattr(import_module(f"harmony.device.{_WHEN_ASKED[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
