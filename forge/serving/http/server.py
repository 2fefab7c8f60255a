"""Runs the application on a socket until a signal: then takes nothing new, and lets what runs end within a grace period."""

import asyncio
import gc
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from forge.errors import ServingError, Stopped

_AFTER_S = 5  # for answers that were cut short to leave
_BACKLOG = 512
_TOLD_S = 5  # for who reads a body to say that it is late, before its connection goes
_UNREAD_S = 60  # that a client may leave what was sent to it untouched
_AT_ONCE = 4096  # bytes that are taken from a connection before the next one's turn: parsed, they may be hundreds of chunks


class _Protocol(H11Protocol, asyncio.BufferedProtocol):
    """Drops a client whose request doesn't come to its end, or that doesn't read: uvicorn and asyncio keep such a connection for ever.

    A request's head has `read_s` seconds from its first byte, or from the beginning of the connection; its body has as many, and _TOLD_S.
    Between two requests uvicorn's own time counts.
    """

    read_s: float
    _unread: asyncio.TimerHandle | None = None
    _late: asyncio.TimerHandle | None = None
    _state: object = None  # of the request when _late was set

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # so that pause_writing comes with the first byte that waits here
        self._buffer = bytearray(_AT_ONCE)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unwatch()
        if self._unread:
            self._unread.cancel()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._buffer[:nbytes]))

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def _watch(self) -> None:
        state = self.conn.their_state
        if state not in (h11.IDLE, h11.SEND_BODY) or self.timeout_keep_alive_task:
            self._unwatch()
        elif state is not self._state:
            self._unwatch()
            self._state = state
            self._late = self.loop.call_later(self.read_s + (_TOLD_S if state is h11.SEND_BODY else 0), self.transport.close)

    def _unwatch(self) -> None:
        if self._late:
            self._late.cancel()
        self._late = self._state = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(_UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread:
            self._unread.cancel()


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens: who connects before the application runs waits. Raises ServingError where the address can't be had."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host.strip("[]"), port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        why = (error.strerror or str(error)).lower()
        raise ServingError(f"can't listen at {host}:{port}: {why}; end what listens there, or choose another port=…") from error
    return listener


@contextmanager
def serving(
    app: ASGIApp, listener: socket.socket, stop: Callable[[], None], grace_s: float, read_s: float = 30.0
) -> Iterator[threading.Event]:
    """Inside, a thread serves; the event is set when it has ended. A request has `read_s` seconds to come.

    At the end of the block nothing new is taken, what runs has `grace_s` seconds, and then `stop` ends it.
    """
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    off = {"log_config": None, "access_log": False, "server_header": False, "proxy_headers": False}
    protocol = type("Protocol", (_Protocol,), {"read_s": read_s})
    config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", backlog=_BACKLOG, **off)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    ended = threading.Event()  # Thread.join, once a signal's exception has passed through it, takes the thread for ended

    def served() -> None:
        try:
            server.run(sockets=[listener])
        finally:
            ended.set()

    threading.Thread(target=served, name="forge-http", daemon=True).start()
    try:
        yield ended
    finally:
        server.should_exit = True
        try:
            ended.wait(grace_s)
        finally:
            stop()
            ended.wait(_AFTER_S)
            server.force_exit = True


def run(app: ASGIApp, listener: socket.socket, stop: Callable[[], None], grace_s: float, read_s: float) -> None:
    """Serve until a signal is raised here as Stopped, and let it pass at the end. A second one ends what runs at once."""
    gc.collect()
    gc.freeze()  # or each full collection looks at all that was imported, and keeps everybody waiting
    with serving(app, listener, stop, grace_s, read_s) as ended:
        try:
            ended.wait()
        except Stopped:
            print(f"\nforge: stopping; what runs has {grace_s:g} s to end, once more to end it now", file=sys.stderr, flush=True)
            raise
    raise ServingError("the server ended by itself; what it printed before says why")
