"""Links in virtual time: what a request costs on a network that is not there. Nothing sleeps.

    time = handshake + slow start + RTT + request · 8 / up + answer · 8 / down        (the first two: cold only)

A kept-alive connection that is idle for less than its retransmission time pays neither handshake nor slow start. The
model leaves out loss, jitter, queues of others and the radio's wake-up, so a real link is slower, never faster.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field

from harmony.core.errors import ConfigError
from harmony.core.spec import Frozen

SEGMENT = 1448
"""Payload of one TCP segment in bytes: an Ethernet frame of 1500 less IPv4 (20), TCP (20) and timestamps (12)."""
SEGMENT_HEADERS = 52
INITIAL_WINDOW = 10
"""Segments that may be sent before the first acknowledgement (RFC 6928)."""

_Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Link(Frozen):
    """A network profile. Rates in kbit/s as the device sees them, round trip in ms; `source`: who published it."""

    name: str
    down_kbit: _Rate
    up_kbit: _Rate
    rtt_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    source: str

    def exchange_s(self, request: float, answer: float, *, cold: bool = False) -> float:
        """Seconds from the first byte sent to the last byte received, the server's own time left out.

        request, answer: bytes above TCP (HTTP headers included); cold: the connection has to be opened first, one
        round trip for the handshake and slow start both ways.
        """
        rtt = self.rtt_ms / 1000
        up, down = _seconds(request, self.up_kbit), _seconds(answer, self.down_kbit)
        opening = rtt + _stalls_s(request, self.up_kbit, rtt) + _stalls_s(answer, self.down_kbit, rtt) if cold else 0.0
        return opening + rtt + up + down


def on_wire(payload: float) -> float:
    """Bytes on the link for `payload` bytes over TCP: every segment carries its headers."""
    return payload + SEGMENT_HEADERS * math.ceil(payload / SEGMENT)


def _seconds(payload: float, kbit: float) -> float:
    return on_wire(payload) * 8 / (kbit * 1000)


def _stalls_s(payload: float, kbit: float, rtt: float) -> float:
    """Waiting for acknowledgements while the window doubles (Kurose & Ross, Computer Networking, section 3.7).

    A window that takes as long to send as a round trip stalls no longer, nor does the last one.
    """
    stalls, window, left = 0.0, INITIAL_WINDOW * SEGMENT, payload
    while left > window and (idle := rtt - _seconds(window, kbit)) > 0:
        stalls, left, window = stalls + idle, left - window, 2 * window
    return stalls


_WPT = "WebPageTest connectivity profile"
LINKS: dict[str, Link] = {
    link.name: link
    for link in (
        Link(name="wifi", down_kbit=30_000, up_kbit=15_000, rtt_ms=2, source="Firefox network throttling, Wi-Fi"),
        Link(name="lte", down_kbit=12_000, up_kbit=12_000, rtt_ms=70, source=f"{_WPT} LTE"),
        Link(name="4g", down_kbit=9_000, up_kbit=9_000, rtt_ms=170, source=f"{_WPT} 4G"),
        Link(name="slow-4g", down_kbit=1_638, up_kbit=750, rtt_ms=150, source="Lighthouse simulated slow 4G"),
        Link(name="3g-fast", down_kbit=1_600, up_kbit=768, rtt_ms=150, source=f"{_WPT} 3GFast"),
        Link(name="3g", down_kbit=1_600, up_kbit=768, rtt_ms=300, source=f"{_WPT} 3G"),
    )
}


def find_link(name: str) -> Link:
    """The profile of that name; ConfigError lists the known ones."""
    if name not in LINKS:
        raise ConfigError(f"'{name}' is no link", where="links", mend=f"choose from {', '.join(LINKS)}")
    return LINKS[name]
