"""Who is connected: nobody holds the server up by being slow or silent, and newcomers get in when all places are taken.

uvicorn sets a client no time for its request or for taking the answer, and asyncio no bound on connections; with no
file left for another one, asyncio tries hundreds of times a second and logs each.
"""

import errno
import functools
import gc
import logging
import os
import resource
import socket
import time
from asyncio.sslproto import SSLProtocol
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from rlhf.errors import UserError

OTHER_FILES = 256  # those of the database and of versions, and connections that are being closed
AT_ONCE = 64  # connections taken at one go; as many more wait in the kernel
PROGRESS = 2**14  # bytes of an answer; a client that took fewer did not get on
SHED = 10  # when all places are taken, one in so many of those who keep us waiting has to go
log = logging.getLogger("reward.collect.web.connections")


@dataclass(frozen=True)
class Limits:
    """Of all connections together, and seconds that a client has for its part."""

    connections: int = 512
    head: float = 10  # from connecting, or from the last answer, to the end of the request's head, TLS included
    body: float = 30
    answer: float = 30  # to take PROGRESS bytes of it


LIMITS = Limits()


class Guest:
    """A connection, and since when the server has waited for the same thing of its client."""

    def __init__(self, connection: socket.socket, address: str):
        self.connection, self.address = connection, address
        self.protocol: Watched | None = None  # until TLS is agreed on
        self.waits_for, self._state, self.since = None, None, time.monotonic()

    def look(self, now: float) -> None:
        self.waits_for, *state = self._what_it_waits_for()
        if state != self._state:
            self._state, self.since = state, now

    def _what_it_waits_for(self) -> tuple:
        """(field of Limits, or None while it is the server's turn; what changes when the client gets on)."""
        if self.protocol is None:
            return "head", None
        cycle, untaken = self.protocol.cycle, self.protocol.transport.get_write_buffer_size()
        if untaken or self.protocol.flow.write_paused:
            return "answer", cycle, untaken // PROGRESS
        if cycle is None or cycle.response_complete:
            return "head", cycle
        return ("body" if cycle.more_body else None), cycle

    @property
    def was_answered(self) -> bool:
        """Whether it is known to ask whole questions."""
        return self.protocol is not None and self.protocol.cycle is not None and self.protocol.cycle.response_complete

    def close(self) -> None:
        """Ends the connection now. What is not sent is lost."""
        if self.protocol is not None:
            return self.protocol.transport.abort()
        with suppress(OSError):  # the client may have gone
            self.connection.shutdown(socket.SHUT_RDWR)  # asyncio, whose socket it is, sees its end and closes it


class Door(socket.socket):
    """A listening socket that knows who came in, and sees those out who keep the server waiting."""

    def __init__(self, listening: socket.socket, limits: Limits):
        super().__init__(fileno=listening.detach())
        self.limits = limits
        self._guests: dict[int, Guest] = {}  # by file descriptor
        self._spare = os.open(os.devnull, os.O_RDONLY)

    def accept(self) -> tuple[socket.socket, tuple]:
        try:
            connection, address = super().accept()
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self._turn_away()
            raise BlockingIOError from None  # asyncio comes back at the next turn of its loop
        if self._num_open() >= self.limits.connections:
            self._shed()
        self._guests[connection.fileno()] = Guest(connection, address[0])
        return connection, address

    def welcome(self, protocol: "Watched") -> None:
        """From here on the connection speaks HTTP."""
        number = protocol.transport.get_extra_info("socket").fileno()
        if number in self._guests:
            self._guests[number].protocol = protocol

    def close_late(self) -> None:
        """Closes the connections of those who took too long."""
        now = time.monotonic()
        self._num_open()
        for guest in list(self._guests.values()):
            guest.look(now)
            if guest.waits_for and now - guest.since > getattr(self.limits, guest.waits_for):
                self._see_out(guest, LATE[guest.waits_for], getattr(self.limits, guest.waits_for))

    def close_idle(self) -> None:
        """Closes the connections that ask nothing."""
        for guest in self._guests.values():
            guest.look(time.monotonic())
            if guest.waits_for == "head":
                guest.close()

    def _num_open(self) -> int:
        self._guests = {number: one for number, one in self._guests.items() if one.connection.fileno() == number}
        return len(self._guests)

    def _shed(self) -> None:
        """Sees some out who keep the server waiting: of the address with most connections, and who have waited longest.

        Those who have asked and been answered come last.
        """
        now, held = time.monotonic(), Counter(guest.address for guest in self._guests.values())
        for guest in self._guests.values():
            guest.look(now)
        waited_for = [guest for guest in self._guests.values() if guest.waits_for]
        waited_for.sort(key=lambda guest: (-held[guest.address], guest.was_answered, guest.since))
        for guest in waited_for[: -(-len(waited_for) // SHED)]:
            self._see_out(guest, ALL_TAKEN, self.limits.connections)

    def _see_out(self, guest: Guest, why: str, *values) -> None:
        log.warning(why, guest.address, *values)
        guest.close()
        self._guests = {number: one for number, one in self._guests.items() if one is not guest}

    def _turn_away(self) -> None:
        """Takes a connection with the spare file and closes it: left in the line it would call again and again."""
        log.warning("no file is left for another connection (ulimit -n): newcomers are turned away")
        os.close(self._spare)
        with suppress(OSError):
            super().accept()[0].close()
        self._spare = os.open(os.devnull, os.O_RDONLY)


LATE = {
    "head": "closed the connection of %s: no whole request for %g s",
    "body": "closed the connection of %s: the body of its request was not whole after %g s",
    "answer": "closed the connection of %s: it has not taken the answer for %g s",
}
ALL_TAKEN = "closed the connection of %s, which was waiting for it: all %d places were taken"


class Watched(H11Protocol):
    """uvicorn's HTTP/1.1 for a connection that came in by a Door."""

    def __init__(self, door: Door, *arguments, **named):
        super().__init__(*arguments, **named)
        self._door = door

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._door.welcome(self)


class Server(uvicorn.Server):
    """uvicorn's server behind a Door, which it looks at twice a second."""

    def __init__(self, app, door: Door, **options):
        protocol = functools.partial(Watched, door)
        # uvloop would take connections without asking the door.
        super().__init__(uvicorn.Config(app, http=protocol, ws="none", loop="asyncio", backlog=AT_ONCE, **options))
        self._door = door

    async def on_tick(self, counter: int) -> bool:
        if counter % 5 == 0:
            self._door.close_late()
        return await super().on_tick(counter)

    async def shutdown(self, sockets=None) -> None:
        self._door.close_idle()  # else it would wait for TLS to begin or to end
        await super().shutdown(sockets)


def require_files(limits: Limits) -> None:
    """Raises the number of files that this process may open to what the connections need, or UserError."""
    needed = limits.connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    except (ValueError, OSError):
        raise UserError(f"ulimit -n {soft}: the server needs {needed} open files; allow it as many") from None


def spare_memory() -> None:
    """For the whole process: what connections leave behind goes soon, and those that begin TLS cost little.

    asyncio keeps 256 KiB for each of them, in a cycle that only a full collection frees, which is rare: 1,300 that come
    each second and go were 1 GB.
    """
    SSLProtocol.max_size = 2**14  # as much as TLS sends in one piece
    gc.collect()
    gc.freeze()  # what was loaded stays, so that a full collection is quick
    gc.set_threshold(700, 10, 2)
