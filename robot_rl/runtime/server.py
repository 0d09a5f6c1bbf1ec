"""The server's side of openpi's websocket protocol, over anything that answers observations (a `Service`).

On connecting, one binary msgpack map: the metadata. Then binary observations in, binary results out, one after the other. A request
that cannot be answered gets a text frame and the connection is closed with 1011; the server lives on. `GET /healthz` answers `OK`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hmac
import http
import logging
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from data.errors import InputError
from policies.protocol.wire import pack, unpack

_log = logging.getLogger(__name__)


class Session(Protocol):
    """One client's connection."""

    async def answer(self, observation: dict[str, Any], message: bytes) -> dict[str, Any]:
        """The reply to an observation, with `actions`. message: its bytes, as they came."""
        ...

    async def close(self) -> None: ...


class Service(Protocol):
    """What is served: its metadata, and a session for each connection."""

    @property
    def metadata(self) -> dict[str, Any]: ...

    async def start(self) -> None:
        """Called once on the server's event loop, before the first client."""
        ...

    def session(self) -> Session: ...

    async def close(self) -> None: ...


@dataclass(frozen=True)
class ServingSettings:
    """port: 0 takes a free one. api_key: which clients must send, None for none. max_message: bytes."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_message: int = 64 << 20


class Server:
    """Serves until `stop`: then whoever waits for an answer still gets it, and everyone is sent away with 1001."""

    def __init__(self, service: Service, settings: ServingSettings) -> None:
        self._service, self._settings = service, settings
        self._metadata = b""
        self._connections: set[Any] = set()
        self._busy: set[Any] = set()
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        self._stopping.set()

    async def run(self, on_ready: Callable[[str], None] = lambda _: None) -> None:
        """Serve; `on_ready` is told the address. InputError when the address cannot be had."""
        from websockets.asyncio.server import serve

        settings = self._settings
        # Starting may mean waiting for another server; whoever wants to stop does not wait with it.
        starting, stopping = asyncio.ensure_future(self._service.start()), asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait((starting, stopping), return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return
        starting.result()
        self._metadata = pack(self._service.metadata)
        try:
            server = await serve(
                self._handle,
                settings.host,
                settings.port,
                compression=None,
                max_size=settings.max_message,
                process_request=self._admit,
                server_header=None,
                close_timeout=2,
            )
        except (OSError, OverflowError) as error:
            await self._service.close()
            raise InputError(
                f"{settings.host}:{settings.port}: cannot be listened on ({error}); is it taken? choose another --port or --host"
            ) from None
        host, port = server.sockets[0].getsockname()[:2]
        on_ready(f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}")
        await self._stopping.wait()
        await asyncio.sleep(0)  # messages that have arrived reach their handlers first
        server.close(close_connections=False)
        idle = [connection for connection in self._connections if connection not in self._busy]
        await asyncio.gather(*(connection.close(1001) for connection in idle), return_exceptions=True)
        await server.wait_closed()
        await self._service.close()

    def _admit(self, connection: Any, request: Any) -> Any:
        """An HTTP response for those who do not get a websocket."""
        if request.path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if self._settings.api_key is not None:
            given = ", ".join(request.headers.get_all("Authorization")).encode("utf-8", "surrogateescape")
            if not hmac.compare_digest(given, f"Api-Key {self._settings.api_key}".encode()):
                return connection.respond(http.HTTPStatus.UNAUTHORIZED, "This server needs its API key.\n")
        return None

    async def _handle(self, connection: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        session, total = self._service.session(), None
        gone = asyncio.ensure_future(connection.wait_closed())
        self._connections.add(connection)
        try:
            await connection.send(self._metadata)
            while not self._stopping.is_set():
                message = await connection.recv()
                started = time.perf_counter()
                self._busy.add(connection)
                try:
                    answering = asyncio.ensure_future(self._answer(session, message))
                    await asyncio.wait((answering, gone), return_when=asyncio.FIRST_COMPLETED)
                    if not answering.done():
                        answering.cancel()  # nobody waits for it
                        return
                    reply = answering.result()
                    # A message cannot say how long its own sending takes.
                    if total is not None and isinstance(timing := reply.setdefault("server_timing", {}), dict):
                        timing.setdefault("prev_total_ms", total)
                    await connection.send(pack(reply))
                except ConnectionClosed:
                    raise
                except Exception as error:
                    await self._refuse(connection, error)
                    return
                finally:
                    self._busy.discard(connection)
                total = 1e3 * (time.perf_counter() - started)
            await connection.close(1001)
        except ConnectionClosed:
            pass
        finally:
            gone.cancel()
            self._connections.discard(connection)
            await session.close()

    async def _answer(self, session: Session, message: bytes | str) -> dict[str, Any]:
        if isinstance(message, str):
            raise InputError("a text message; observations are binary msgpack maps")
        observation = unpack(message)
        if not isinstance(observation, dict) or not all(isinstance(key, str) for key in observation):
            raise InputError("the message is not an observation; send a map with text keys")
        return await session.answer(observation, message)

    async def _refuse(self, connection: Any, error: Exception) -> None:
        """The protocol's error frame: a mistake of the client's in one line, a defect of ours with its traceback."""
        if isinstance(error, InputError):
            text = " ".join(str(error).split())
            _log.warning("%s: %s", _peer(connection), text)
        else:
            text = "".join(traceback.format_exception(error))
            _log.error("%s: answering failed", _peer(connection), exc_info=error)
        with contextlib.suppress(Exception):
            await connection.send(text)
            await connection.close(1011, "see the error in the message before this")


def run_service(make: Callable[[], Service], settings: ServingSettings, on_ready: Callable[[str], None]) -> None:
    """Serve what `make` makes until SIGINT or SIGTERM; a second signal does not wait for the requests in flight."""

    async def main() -> None:
        server, loop = Server(make(), settings), asyncio.get_running_loop()
        signals = 0

        def stop() -> None:
            nonlocal signals
            signals += 1
            if signals > 1:
                os._exit(130)
            server.stop()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop)
        await server.run(ready)

    def ready(address: str) -> None:
        # What is loaded by now stays; a collector that walked through it again and again would be the latency's tail.
        gc.collect()
        gc.freeze()
        on_ready(address)

    asyncio.run(main())


def _peer(connection: Any) -> str:
    address = connection.remote_address
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "a client"
