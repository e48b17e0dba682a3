"""Why a request is not served: an HTTP status, a reason for the metrics, and a line for the caller."""

from __future__ import annotations

import json
import math
from typing import Literal

from harmony.core.errors import ContractMismatch, HarmonyError

Header = tuple[bytes, bytes]
Reason = Literal[
    "unauthorized",
    "forbidden",
    "limited",
    "not_found",
    "method",
    "malformed",
    "invalid_tensor",
    "contract",
    "too_large",
    "encoding",
    "slow_body",
    "disconnected",
    "overload",
    "expired",
    "stopping",
    "internal",
]


class Refusal(Exception):
    """Ends a request. The body of the answer is {"error": message}; `headers` go beside it.

    retry_after: seconds after which it makes sense to ask again; the header Retry-After says it, and the message.
    """

    def __init__(
        self, status: int, reason: Reason, message: str, *, headers: tuple[Header, ...] = (), retry_after: float = 0.0
    ) -> None:
        self.retry_after = math.ceil(retry_after)  # HTTP has whole seconds
        if self.retry_after:
            message = f"{message}; try again in {self.retry_after} s"
            headers = (*headers, (b"retry-after", b"%d" % self.retry_after))
        super().__init__(message)
        self.status = status
        self.reason: Reason = reason
        self.headers = headers

    def body(self) -> bytes:
        """The JSON that every client of the protocol expects of an error."""
        return json.dumps({"error": str(self)}).encode()


def malformed(message: str) -> Refusal:
    """400: the body is not what the protocol says."""
    return Refusal(400, "malformed", message)


def unauthorized() -> Refusal:
    """401, the same for a missing and for a wrong key."""
    return Refusal(
        401,
        "unauthorized",
        "a valid key is needed: send the header 'Authorization: Bearer KEY'",
        headers=((b"www-authenticate", b"Bearer"),),
    )


def too_large(limit: int, what: str = "the body") -> Refusal:
    """413, with the limit in bytes."""
    return Refusal(413, "too_large", f"{what} is larger than {limit} bytes")


def of_error(error: HarmonyError) -> Refusal:
    """409 for another cut contract, 400 for a feature that cannot be used."""
    if isinstance(error, ContractMismatch):
        return Refusal(409, "contract", str(error))
    return Refusal(400, "invalid_tensor", str(error))
