"""Servers for the tests: in a thread, or as a process of their own, as users start them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from robot_rl.runtime import Server, ServingSettings

ROOT = Path(__file__).parents[3]
OPENPI_LIKE = Path(__file__).with_name("openpi_like.py")


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class Running:
    """`Server.run` in a thread."""

    def __init__(self, make: Callable[[], Any], settings: ServingSettings) -> None:
        self._make, self._settings, self.address = make, settings, ""
        self._ready, self.error = threading.Event(), None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()
        assert self._ready.wait(20)
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self.service = self._make()
            self.server = Server(self.service, self._settings)
            await self.server.run(self._listening)

        try:
            asyncio.run(main())
        except Exception as error:
            self.error = error
        self._ready.set()

    def _listening(self, address: str) -> None:
        self.address = address
        self._ready.set()

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def stop(self) -> None:
        if self.thread.is_alive():
            self._loop.call_soon_threadsafe(self.server.stop)


@contextmanager
def serving(make: Callable[[], Any], **settings: Any) -> Iterator[Running]:
    running = Running(make, ServingSettings(**{"port": 0, **settings}))
    try:
        yield running
    finally:
        running.stop()
        running.thread.join(20)
        assert not running.thread.is_alive()


class Command:
    """`robot-rl serve ...` as a process; waits until it says where it listens."""

    def __init__(self, *arguments: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "robot_rl.cli", "serve", "--port", "0", *arguments],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._listening = threading.Event()
        self.address = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr or ():
            self.lines.append(line.rstrip())
            if found := re.search(r" on (ws://\S+)$", line.rstrip()):
                self.address = found[1]
                self._listening.set()
        self._listening.set()

    def wait(self, seconds: float = 60) -> Command:
        assert self._listening.wait(seconds), self.lines
        assert self.address, self.lines
        return self

    @property
    def port(self) -> int:
        return int(self.address.rpartition(":")[2])

    def end(self, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(30)
        self._reader.join(5)
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@contextmanager
def openpi_like(port: int | None = None, *options: str) -> Iterator[tuple[int, subprocess.Popen]]:
    """The other kind of server: its port, and its process for those who want it dead."""
    port = port or free_port()
    process = subprocess.Popen([sys.executable, str(OPENPI_LIKE), str(port), *options])
    try:
        deadline = time.monotonic() + 20
        while True:
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield port, process
    finally:
        process.kill()
        process.wait()


@contextmanager
def listening(handle: Callable[[Any], Any]) -> Iterator[str]:
    """A websocket server in a thread, which handles each connection so; its address."""
    from websockets.asyncio.server import serve

    started: dict[str, Any] = {}
    ready = threading.Event()

    async def main() -> None:
        started["loop"], started["stop"] = asyncio.get_running_loop(), asyncio.Event()
        async with serve(handle, "127.0.0.1", 0, compression=None) as server:
            started["port"] = next(iter(server.sockets)).getsockname()[1]
            ready.set()
            await started["stop"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(10)
    try:
        yield f"ws://127.0.0.1:{started['port']}"
    finally:
        started["loop"].call_soon_threadsafe(started["stop"].set)
        thread.join(20)
