"""A link that is there: two network namespaces, a TUN device in each, and a relay that holds every packet as long as a
link profile says. TCP, sockets and windows are the kernel's own.

Linux, and root (or CAP_NET_ADMIN and CAP_SYS_ADMIN). Nothing outlives the `with` block: the namespaces have no names,
and are gone with the threads and devices in them.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import queue
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from harmony.bench.links import Link
from harmony.core.errors import ConfigError

DEVICE_IP, SERVER_IP = "10.203.0.1", "10.203.0.2"
MTU = 1500
_TUN, _CLONE_NEWNET = Path("/dev/net/tun"), 0x40000000
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SIOCSIFADDR, _SIOCSIFDSTADDR, _SIOCSIFFLAGS, _SIOCSIFMTU = 0x8916, 0x8918, 0x8914, 0x8922
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_PAUSE_S = 0.0005
T = TypeVar("T")


class Namespace:
    """A thread in a network namespace of its own, that does what it is told there, one thing after the other."""

    def __init__(self, address: str, peer: str) -> None:
        self._orders: queue.SimpleQueue[tuple[Callable[[], Any], queue.SimpleQueue[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        try:
            self.tun: int = self.do(lambda: _enter(address, peer))
        except BaseException:
            self.close()
            raise

    def do(self, what: Callable[[], T]) -> T:
        """Run it in the namespace; what it returns or raises."""
        out: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._orders.put((what, out))
        done, value = out.get()
        if not done:
            raise value
        result: T = value
        return result

    def close(self) -> None:
        """Let the thread end."""
        self._orders.put(None)
        self._thread.join()

    def _work(self) -> None:
        hurry()
        while (order := self._orders.get()) is not None:
            what, out = order
            try:
                out.put((True, what()))
            except BaseException as error:  # raised where it was asked for
                out.put((False, error))


class Pair(NamedTuple):
    """The two ends of a shaped link."""

    device: Namespace
    server: Namespace


@contextmanager
def shaped(link: Link) -> Iterator[Pair]:
    """Both ends, with the link between them for the length of the block. ConfigError where it is not allowed."""
    _require()
    stop = threading.Event()
    with _namespace(DEVICE_IP, SERVER_IP) as device, _namespace(SERVER_IP, DEVICE_IP) as server:
        relays = [
            threading.Thread(target=_relay, args=(source, target, kbit, link.rtt_ms / 2000, stop), daemon=True)
            for source, target, kbit in (
                (device.tun, server.tun, link.up_kbit),
                (server.tun, device.tun, link.down_kbit),
            )
        ]
        for relay in relays:
            relay.start()
        try:
            yield Pair(device, server)
        finally:
            stop.set()
            for relay in relays:
                relay.join()


@contextmanager
def _namespace(address: str, peer: str) -> Iterator[Namespace]:
    one = Namespace(address, peer)
    try:
        yield one
    finally:
        os.close(one.tun)
        one.close()


def hurry() -> None:
    """Let this thread run as soon as it has something to do, if that is allowed: on a busy machine a packet would wait
    for its turn among programs, and the link would seem slower. What such a thread does takes microseconds."""
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def _require() -> None:
    mend = "run it as root on Linux; virtual links, which harmony bench uses, need no privileges"
    if sys.platform != "linux" or not _TUN.exists():
        raise ConfigError("real links need Linux with TUN devices", where=_TUN, mend=mend)
    if os.geteuid() != 0:
        raise ConfigError("real links need root, for network namespaces and TUN devices", where="links", mend=mend)


def _enter(address: str, peer: str) -> int:
    """Leave for a new namespace with this thread; the descriptor of its TUN device, configured and up."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        reason = os.strerror(ctypes.get_errno())
        raise ConfigError(
            f"no network namespace can be made: {reason}", where="links", mend="run it as root, outside a container"
        )
    tun = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK)
    name = b"link0"
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH14x", name, _IFF_TUN | _IFF_NO_PI))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        for request, value in ((_SIOCSIFADDR, address), (_SIOCSIFDSTADDR, peer)):
            sockaddr = struct.pack("HH4s8x", socket.AF_INET, 0, socket.inet_aton(value))
            fcntl.ioctl(control, request, struct.pack("16s16s", name, sockaddr))
        fcntl.ioctl(control, _SIOCSIFMTU, struct.pack("16si12x", name, MTU))
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH14x", name, _IFF_UP | _IFF_RUNNING))
    return tun


def _relay(source: int, target: int, kbit: float, delay_s: float, stop: threading.Event) -> None:
    """Carry packets: each takes its bytes at the link's rate, after those before it, and then half a round trip."""
    hurry()
    waiting: list[tuple[float, bytes]] = []  # in order: rate and delay are the same for all
    free = 0.0
    while not stop.is_set():
        left = waiting[0][0] - time.monotonic() if waiting else 0.05
        if left > _PAUSE_S or not waiting:
            select.select([source], [], [], max(0.0, left - _PAUSE_S / 2))
        with suppress(BlockingIOError):
            while True:
                packet = os.read(source, MTU + 4)
                free = max(free, time.monotonic()) + len(packet) * 8 / (1000 * kbit)
                waiting.append((free + delay_s, packet))
        while waiting and waiting[0][0] <= time.monotonic():
            with suppress(BlockingIOError, OSError):  # a closed end loses packets, as a real one
                os.write(target, waiting[0][1])
            del waiting[0]
