"""One worker of a service: `python -m harmony.cloud.worker FD`, started by harmony.cloud.workers and by nobody else.

stdin: one JSON line of configuration, then open as long as the parent lives. stdout: one JSON line, ready or the error.
FD: a socket over which accepted connections come.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from typing import Any

from harmony.cloud.app import create_app
from harmony.cloud.deploy import Opened
from harmony.cloud.logs import set_up_logs
from harmony.cloud.server import DrainingServer, handled_signals, leave
from harmony.cloud.settings import ServiceSettings
from harmony.cloud.share import Share
from harmony.cloud.source import Place
from harmony.core.errors import HarmonyError


class WorkerServer(DrainingServer):
    """A server without a listener: its connections come over a socket."""

    def __init__(self, *arguments: Any, channel: socket.socket) -> None:
        super().__init__(*arguments)
        self._channel = channel

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and take connections from now on."""
        self._channel.setblocking(False)
        await super().startup(sockets)
        asyncio.get_running_loop().add_reader(self._channel, self._receive)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take what was handed over already, then drain."""
        self._receive()
        asyncio.get_running_loop().remove_reader(self._channel)
        await super().shutdown(sockets)

    def _receive(self) -> None:
        while True:
            try:
                word, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
            except (BlockingIOError, InterruptedError):
                return
            if not word:
                asyncio.get_running_loop().remove_reader(self._channel)
                self.should_exit = True
                return
            for descriptor in descriptors:
                self.door.take(socket.socket(fileno=descriptor))


def main() -> None:
    """Read the configuration, serve until SIGTERM or the end of stdin, drain."""
    channel = socket.socket(fileno=int(sys.argv[1]))
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            return
        line += part
    config = json.loads(line)
    set_up_logs(config["log_level"])
    try:
        _serve(config, channel)
    except HarmonyError as error:
        _say({"error": type(error).__name__, "text": str(error)})
        sys.exit(error.exit_code)
    leave()


def _serve(config: dict[str, Any], channel: socket.socket) -> None:
    settings = ServiceSettings.model_validate_json(json.dumps(config["settings"]))
    source = Place.of(config["place"]).open()
    opened = Opened.of(source)
    if not source.shared:  # a load or unload would reach one worker of several
        opened = Opened.fixed(opened.models)
    app = create_app(opened, settings, Share.of(tuple(config["share"]), config["slot"], settings))
    names = opened.names
    server = WorkerServer(app, settings, lambda: _say({"models": names}), 0, channel=channel)
    with handled_signals(server):
        server.run(sockets=[])


def _say(word: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(word) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
