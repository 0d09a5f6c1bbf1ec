"""Connections to policy servers: openpi's websocket protocol, and the REST server of OpenVLA's `deploy.py`.

`open_server` gives either the same face: `metadata`, `encode` an observation once, `ask` as often and as concurrently as wanted. Each
keeps a few connections, makes new ones with exponential back-off when the server went away, and asks once more when it died before
answering: an inference changes nothing on the other side. Every failure is a `ServerError`, one line.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import threading
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

import numpy as np

from data.errors import InputError
from policies.protocol.wire import pack, pack_json, unpack, unpack_json

MAX_REPLY, _MAX_JSON = 64 << 20, 16 << 20
_FIRST_DELAY, _LONGEST_DELAY = 0.05, 2.0
Result = TypeVar("Result")


class ServerError(InputError):
    """A policy server that cannot be reached, died, or answered with an error."""


class PolicyServer(Protocol):
    """A server at an address; all of its coroutines belong to one event loop."""

    address: str

    async def metadata(self, patience: float) -> dict[str, Any]:
        """What the server says of itself; the first call connects, and tries to for `patience` seconds."""
        ...

    def encode(self, observation: Mapping[str, Any]) -> bytes:
        """A request for this observation."""
        ...

    async def ask(self, request: bytes) -> dict[str, Any]:
        """The answer, with `actions`. When the caller is cancelled, a request under way runs to its end for nobody."""
        ...

    async def close(self) -> None: ...


def open_server(
    address: str,
    *,
    api_key: str | None = None,
    unnorm_key: str | None = None,
    connections: int = 4,
    timeout: float = 30.0,
    patience: float = 2.0,
) -> PolicyServer:
    """timeout: seconds for one answer. patience: seconds of trying to reconnect, once the server was there."""
    try:
        parts = urlsplit(address)
        valid = bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or parts.scheme not in ("ws", "wss", "http", "https"):
        raise InputError(
            f"{address}: not the address of a policy server; give ws://host:port, or http://host:port/act for OpenVLA's"
        )
    if parts.scheme in ("ws", "wss"):
        return SocketServer(address, api_key, connections, timeout, patience)
    return RestServer(address, unnorm_key, connections, timeout, patience)


_SILENT = {"TimeoutError": "it does not greet", "ConnectionResetError": "it hangs up; does it speak TLS, or not?"}


class SocketServer:
    """An openpi server: on connecting it sends its metadata, then answers observations one after the other on each connection."""

    def __init__(self, address: str, api_key: str | None, connections: int, timeout: float, patience: float) -> None:
        self.address, self._timeout, self._patience = address, timeout, patience
        self._headers = {"Authorization": f"Api-Key {api_key}"} if api_key else None
        self._free = asyncio.Semaphore(connections)
        self._idle: list[Any] = []
        self._running: set[asyncio.Task[Any]] = set()
        self._metadata: dict[str, Any] | None = None

    async def metadata(self, patience: float) -> dict[str, Any]:
        if self._metadata is None:
            self._idle.append(await self._connect(patience))
        assert self._metadata is not None
        return self._metadata

    def encode(self, observation: Mapping[str, Any]) -> bytes:
        return pack(dict(observation))

    async def ask(self, request: bytes) -> dict[str, Any]:
        await self._free.acquire()
        # A task of its own: an answer that nobody waits for any more must still be taken off the connection.
        task = asyncio.get_running_loop().create_task(self._exchange(request))
        self._running.add(task)
        task.add_done_callback(self._finished)
        return await asyncio.shield(task)

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.gather(*(connection.close() for connection in self._idle), return_exceptions=True)
        self._idle.clear()

    def _finished(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        self._free.release()
        if not task.cancelled():
            task.exception()  # seen, even where nobody waits

    def _understood(self, message: bytes) -> Any:
        try:
            return unpack(message)
        except InputError as error:
            raise ServerError(f"{self.address}: sent what is {error}; check the address") from None

    def _drop_idle(self) -> None:
        for connection in self._idle:
            connection.transport.abort()
        self._idle.clear()

    async def _exchange(self, request: bytes) -> dict[str, Any]:
        from websockets.exceptions import ConnectionClosed

        for again in (True, False):
            connection = self._idle.pop() if self._idle else await self._connect(self._patience)
            try:
                await connection.send(request)
                answer = await asyncio.wait_for(connection.recv(), self._timeout)
            except ConnectionClosed as error:
                if error.rcvd is not None and error.rcvd.code == 1009:
                    raise ServerError(f"{self.address}: refuses a message of {len(request)} bytes as too big") from None
                if again:
                    self._drop_idle()  # of the same server, hence as dead
                    continue
                raise ServerError(f"{self.address}: the server went away twice while it was asked; see its log") from None
            except TimeoutError:
                connection.transport.abort()
                self._drop_idle()
                raise ServerError(f"{self.address}: no answer within {self._timeout:g} s; give it more --timeout") from None
            except BaseException:
                connection.transport.abort()
                raise
            break
        if isinstance(answer, str):
            with contextlib.suppress(Exception):
                connection.transport.abort()  # the protocol closes after an error
            raise ServerError(f"{self.address}: the server answered with an error: {_last_line(answer)}")
        self._idle.append(connection)
        return _reply(self.address, self._understood(answer))

    async def _connect(self, patience: float) -> Any:
        """A connection whose metadata has been read."""
        from websockets.asyncio.client import connect
        from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI

        loop = asyncio.get_running_loop()
        deadline, delay = loop.time() + patience, _FIRST_DELAY
        while True:
            left = max(deadline - loop.time(), 1.0)
            try:
                # No pings: an openpi server that compiles its model does not answer them for minutes. No proxy: robots are near.
                connection = await connect(
                    self.address,
                    compression=None,
                    max_size=MAX_REPLY,
                    additional_headers=self._headers,
                    ping_interval=None,
                    open_timeout=left,
                    close_timeout=1,
                    proxy=None,
                )
                try:
                    first = await asyncio.wait_for(connection.recv(), left)
                except BaseException:
                    connection.transport.abort()
                    raise
                break
            except InvalidURI:
                raise InputError(f"{self.address}: not an address; give ws://host:port") from None
            except InvalidStatus as error:
                status = error.response.status_code
                if status in (401, 403):
                    raise ServerError(f"{self.address}: refuses the API key (HTTP {status}); give the server's own") from None
                if status < 500:
                    raise ServerError(f"{self.address}: no policy server (HTTP {status}); check the address") from None
                reason = f"HTTP {status}"
            except (TimeoutError, OSError, EOFError, InvalidHandshake, ConnectionClosed) as error:
                reason = _last_line(str(error)) or _SILENT.get(type(error).__name__, type(error).__name__)
            if loop.time() + delay > deadline:
                raise ServerError(f"{self.address}: no policy server can be reached ({reason}); start it, or check the address")
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)
        metadata = self._understood(first) if isinstance(first, bytes) else None
        if not isinstance(metadata, dict):
            connection.transport.abort()
            raise ServerError(f"{self.address}: does not begin with metadata, as openpi servers do; check the address")
        self._metadata = metadata
        return connection


class RestServer:
    """OpenVLA's `deploy.py`: JSON of `image`, `instruction` and perhaps `unnorm_key` is posted; an action vector comes back."""

    def __init__(self, address: str, unnorm_key: str | None, connections: int, timeout: float, patience: float) -> None:
        self.address, self._unnorm_key, self._timeout, self._patience = address, unnorm_key, timeout, patience
        self._parts = urlsplit(address)
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="rest")

    async def metadata(self, patience: float) -> dict[str, Any]:
        """Nothing: this server has none; but it must be there."""
        await self._patiently(self._touch, patience)
        return {}

    def encode(self, observation: Mapping[str, Any]) -> bytes:
        """observation: by our names, of which the server understands the main camera and the instruction."""
        for key in ("image_primary", "instruction"):
            if key not in observation:
                raise InputError(f"{self.address}: OpenVLA's server needs {key!r}, which the observation does not have")
        payload = {"image": observation["image_primary"], "instruction": observation["instruction"]}
        if self._unnorm_key is not None:
            payload["unnorm_key"] = self._unnorm_key
        return pack_json(payload).encode()

    async def ask(self, request: bytes) -> dict[str, Any]:
        body = await self._patiently(lambda: self._post(request), self._patience)
        answer = unpack_json(body)
        if isinstance(answer, str):
            # With its double encoding the answer is JSON inside a JSON string; "error" is all it says when something failed.
            with contextlib.suppress(InputError):
                answer = unpack_json(answer)
        return {"actions": np.atleast_2d(_reply(self.address, {"actions": answer})["actions"])}

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _patiently(self, work: Callable[[], Any], patience: float) -> Any:
        loop = asyncio.get_running_loop()
        deadline, delay, broken = loop.time() + patience, _FIRST_DELAY, 0
        while True:
            try:
                return await loop.run_in_executor(self._threads, work)
            except TimeoutError:
                raise ServerError(f"{self.address}: no answer within {self._timeout:g} s; give it more --timeout") from None
            except (OSError, http.client.HTTPException) as error:
                broken += not isinstance(error, ConnectionRefusedError)
                if broken > 1 or loop.time() + delay > deadline:
                    reason = _last_line(str(error)) or type(error).__name__
                    raise ServerError(
                        f"{self.address}: no policy server can be reached ({reason}); start it, or check the address"
                    ) from None
            await asyncio.sleep(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    def _connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._parts.scheme == "https" else http.client.HTTPConnection
        return kind(self._parts.hostname or "", self._parts.port, timeout=self._timeout)

    def _touch(self) -> None:
        with contextlib.closing(self._connection()) as connection:
            connection.connect()

    def _post(self, request: bytes) -> bytes:
        with contextlib.closing(self._connection()) as connection:
            path = self._parts.path if self._parts.path not in ("", "/") else "/act"
            connection.request("POST", path, request, {"Content-Type": "application/json"})
            response = connection.getresponse()
            body = response.read(_MAX_JSON + 1)
        if response.status != 200:
            reason = _last_line(body[:2000].decode("utf-8", "replace"))
            raise ServerError(f"{self.address}: the server answered HTTP {response.status}: {reason}")
        if len(body) > _MAX_JSON:
            raise ServerError(f"{self.address}: an answer of more than {_MAX_JSON} bytes is refused")
        return body


class BackgroundLoop:
    """An event loop in a thread, for callers that have none."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._run, name="policy server", daemon=True).start()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """The coroutine's result; the calling thread waits."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)


def _reply(address: str, answer: Any) -> dict[str, Any]:
    actions = answer.get("actions") if isinstance(answer, dict) else None
    if isinstance(actions, list) and actions:
        with contextlib.suppress(ValueError, TypeError):
            actions = np.stack([np.asarray(action) for action in actions])
    if not isinstance(actions, np.ndarray) or actions.dtype.kind not in "fiu":
        said = repr(actions if isinstance(answer, dict) else answer)[:60]
        raise ServerError(f"{address}: answered {said} in place of an array of actions; see the server's log")
    return {**answer, "actions": actions}


def _last_line(text: str) -> str:
    """What an error, perhaps a traceback, comes down to."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
