"""What ranks know of each other beside Horovod: who is where, what it does, and who is gone."""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil

from lakering.errors import TrainingError

#: Seconds between two looks of a rank at its state and its connection.
BEAT = 0.5
#: Seconds without a word after which a rank is named as silent: its machine is down, or its process is stopped.
SILENT = 30.0
#: Seconds that the other ranks have to end by themselves once the reason is known; then their processes are ended.
GRACE, GRACE_ELASTIC = 15.0, 60.0
#: Seconds to connect at the start, and to say who one is.
CONNECT, GREET = 30.0, 5.0
MAX_LINE = 1 << 16


class UnreachedError(TrainingError):
    """The ranks did not come together: one of them died on the way, or no network joins them."""


@dataclass
class Peer:
    """What was last heard of a rank, at seconds of the monotonic clock of rank 0."""

    host: str
    doing: str = "starting"
    waiting: bool = False
    since: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)
    end: str | None = None
    """None while it works, else what it said when it left, "" without an error."""

    @property
    def left(self) -> bool:
        return self.end is not None


def died(rank: int, peer: Peer) -> str:
    return f"rank {rank} on {peer.host} died (killed, out of memory or crashed), last seen {peer.doing}"


def verdict(peers: dict[int, Peer], now: float) -> str | None:
    """Why ranks lost each other though no connection broke: who left, who is silent, who is late for what the others
    wait for. None when nothing tells them apart."""
    for rank, peer in peers.items():
        if peer.left:
            return f"rank {rank} on {peer.host} ended before the others" + (f": {peer.end}" if peer.end else "")
    silent = [f"rank {rank} on {peer.host}, not heard of for {now - peer.heard:.0f} s, last seen {peer.doing}"
              for rank, peer in peers.items() if now - peer.heard > SILENT / 2]  # fmt: skip
    late = late_ranks(peers, now)
    if silent or late:
        return f"the other ranks waited in vain for {'; '.join(silent or late)}"
    return None


def late_ranks(peers: dict[int, Peer], now: float) -> list[str]:
    """Who keeps the others waiting, each with its host, what it does and since when; empty when nobody waits."""
    if not any(peer.waiting for peer in peers.values()):
        return []
    return [f"rank {rank} on {peer.host}, {peer.doing} for {now - peer.since:.0f} s"
            for rank, peer in peers.items() if not peer.waiting and not peer.left]  # fmt: skip


# Horovod tells a rank that others are gone, not which. A TCP connection to rank 0 tells it within a second, under every
# launcher and without shared storage (an object store has no locks): the kernel closes it when a process dies. Its address
# and secret travel by Horovod's own broadcast, so that they are in no argument, environment or log.
class Peers:
    """One connection from every rank to rank 0. Says what this rank does, and learns why a run ends.

    When a rank dies, the others have ``GRACE`` seconds to end with the reason; then their processes are ended."""

    def __init__(self, rank: int, size: int, broadcast: Callable[[str], str], *, stall_seconds: float,
                 abandon: Callable[[], None], elastic: bool = False) -> None:  # fmt: skip
        """``broadcast`` gives every rank rank 0's text; all ranks make their Peers together. ``abandon`` makes collectives
        that wait for others fail; it is called in a thread of its own when the run ends; an ``elastic`` one may go
        on, and its processes have longer."""
        self.rank, self._stall_seconds, self._abandon, self._elastic = rank, stall_seconds, abandon, elastic
        self.lost = False
        """Whether the reason is that a rank is gone, or its machine: those that are left could go on without it."""
        self._warn_at = stall_seconds / 10
        self._me = Peer(socket.gethostname())
        self._peers = {rank: self._me}
        self._reason: str | None = None
        self._known = threading.Event()
        self._closed = threading.Event()
        self._released = threading.Event()
        self._asked = self._all_left = False
        if rank == 0:
            with listen(size) as server:
                token = secrets.token_hex(16)
                broadcast(json.dumps([*server.getsockname()[:2], token]))
                self._connections = self._accept(server, token, size)
        else:
            host, port, token = json.loads(broadcast(""))
            self._connections = {0: _connect(host, port, {"token": token, "rank": rank, "host": self._me.host})}
        threading.Thread(target=self._serve, name="peers", daemon=True).start()

    def doing(self, what: str, waiting: bool) -> tuple[str, bool]:
        """Notes what this rank does from now on, and whether others could be what it waits for. Returns what was noted."""
        before = self._me.doing, self._me.waiting
        self._me.doing, self._me.waiting, self._me.since = what, waiting, time.monotonic()
        return before

    def why(self, wait: float = 10.0) -> str | None:
        """Why the ranks lost each other: rank 0 decides, after what just happened has reached it."""
        self._asked = True
        self._known.wait(wait)
        return self._reason

    def close(self, failure: str = "") -> None:
        """Tells the others that this rank leaves, and with which error."""
        if self._closed.is_set():
            return
        self._closed.set()
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                _send(connection, {"end": failure[:2000]})
                connection.shutdown(socket.SHUT_WR)

    def release(self) -> None:
        """Lets go of the others: this process goes on without them."""
        self.close()
        self._released.set()

    def _accept(self, server: socket.socket, token: str, size: int) -> dict[int, socket.socket]:
        found: dict[int, socket.socket] = {}
        until = time.monotonic() + CONNECT
        while len(found) < size - 1:
            server.settimeout(max(0.1, until - time.monotonic()))
            try:
                connection, _ = server.accept()
                connection.settimeout(GREET)
                hello = json.loads(connection.makefile("rb").readline(MAX_LINE))
            except TimeoutError:
                if time.monotonic() > until:
                    missing = sorted(set(range(1, size)) - set(found))
                    raise UnreachedError(f"ranks {missing} did not reach rank 0 within {CONNECT:.0f} s") from None
                continue
            except (OSError, ValueError):
                continue
            if isinstance(hello, dict) and hmac.compare_digest(str(hello.get("token")), token):
                rank = int(hello["rank"])
                found[rank] = connection
                self._peers[rank] = Peer(str(hello["host"]))
            else:
                connection.close()
        self._peers = dict(sorted(self._peers.items()))
        return found

    def _serve(self) -> None:
        """The thread of this rank: says, listens, and on rank 0 decides."""
        buffers = dict.fromkeys(self._connections, b"")
        deadline: float | None = None
        with selectors.DefaultSelector() as selector:
            for rank, connection in self._connections.items():
                connection.settimeout(GREET)
                selector.register(connection, selectors.EVENT_READ, rank)
            asked_at: float | None = None
            while not self._released.is_set() and (self._reason is not None or not self._closed.is_set()):
                for key, _ in selector.select(BEAT):
                    content = _receive(key.fileobj)  # type: ignore[arg-type]
                    if not content:
                        selector.unregister(key.fileobj)
                        self._lost(key.data)
                        continue
                    *lines, buffers[key.data] = (buffers[key.data] + content).split(b"\n")
                    for line in lines:
                        self._hear(key.data, json.loads(line))
                now = time.monotonic()
                if self.rank == 0:
                    self._me.heard = now
                    self._judge(now)
                    if self._asked and asked_at is None:
                        asked_at = now
                    # A death is seen by Horovod and by us in either order: a second settles it.
                    if asked_at is not None and now - asked_at > 1 and self._reason is None:
                        self._decide(verdict(self._peers, now) or "the ranks lost each other: the network broke, or one failed",
                                     lost=not any(peer.end for peer in self._peers.values()))  # fmt: skip
                else:
                    state = {
                        "doing": self._me.doing,
                        "waiting": self._me.waiting,
                        "for": now - self._me.since,
                        "why": self._asked,
                    }
                    with contextlib.suppress(OSError):
                        _send(self._connections[0], state)
                if self._reason is not None:
                    deadline = deadline or now + (GRACE_ELASTIC if self._elastic else GRACE)
                    if now > deadline:
                        end_process(f"error: {self._reason}")
        if self._released.is_set():
            for connection in self._connections.values():
                connection.close()

    def _hear(self, rank: int, said: dict[str, Any]) -> None:
        now = time.monotonic()
        if "reason" in said:
            self._learn(said["reason"], lost=said["lost"])
        elif rank in self._peers and rank != self.rank:
            peer = self._peers[rank]
            peer.heard = now
            if "end" in said:
                peer.end = said["end"]
            else:
                peer.doing, peer.waiting, peer.since = said["doing"], said["waiting"], now - said["for"]
                self._asked |= said["why"]
        elif "end" in said:
            self._all_left = True  # rank 0 left: it says nothing more
            if said["end"]:
                self._learn(f"rank 0 ended: {said['end']}")

    def _lost(self, rank: int) -> None:
        if self.rank == 0:
            peer = self._peers[rank]
            if not peer.left:
                self._decide(died(rank, peer), lost=True)
        elif not self._all_left:
            self._learn("rank 0 died (killed, out of memory or crashed): its connection broke", lost=True)

    def _judge(self, now: float) -> None:
        """On rank 0: names the rank that keeps the others waiting, and ends the run when it is time."""
        waits = [now - peer.since for peer in self._peers.values() if peer.waiting and not peer.left]
        late = late_ranks(self._peers, now)
        if not late or not waits or max(waits) < self._warn_at:
            self._warn_at = self._warn_at if late else self._stall_seconds / 10
        elif max(waits) >= self._stall_seconds:
            # Horovod's own shutdown for stalls does not come when a rank that was in step before stops submitting.
            self._decide(f"stalled for {max(waits):.0f} s: the other ranks waited in vain for {'; '.join(late)}")
        else:
            self._warn_at = 2 * max(waits)
            _print(f"warning: the other ranks have waited {max(waits):.0f} s for {'; '.join(late)}")
        for rank, peer in self._peers.items():
            if not peer.left and now - peer.heard > SILENT:
                self._decide(f"rank {rank} on {peer.host} was not heard of for {SILENT:.0f} s (its machine is down, "
                             f"or its process is stopped), last seen {peer.doing}", lost=True)  # fmt: skip

    def _decide(self, reason: str, *, lost: bool = False) -> None:
        """On rank 0: the reason, told to all, and printed at once, since a launcher may end this process any moment."""
        if self._reason is not None:
            return
        _print(f"{'lost' if lost and self._elastic else 'ending'}: {reason}")
        self._learn(reason, lost=lost)
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                _send(connection, {"reason": reason, "lost": lost})

    def _learn(self, reason: str, *, lost: bool = False) -> None:
        if self._reason is None:
            self._reason, self.lost = reason, lost
            self._known.set()
            threading.Thread(target=self._abandon, name="abandon", daemon=True).start()


def listen(backlog: int) -> socket.socket:
    """A listening socket on the interface that Horovod was given, never on all of them."""
    address = address_of(os.environ.get("HOROVOD_GLOO_IFACE", "lo"))
    return socket.create_server((address, 0), backlog=backlog)


def address_of(interface: str) -> str:
    """The IPv4 address of a network interface. Raises TrainingError when it has none."""
    for found in psutil.net_if_addrs().get(interface, []):
        if found.family == socket.AF_INET:
            return found.address
    known = ", ".join(psutil.net_if_addrs())
    raise TrainingError(f"network interface {interface!r} has no IPv4 address (there are: {known})",
                        next_step="name another one with --network-interface")  # fmt: skip


def end_process(text: str) -> None:
    """Ends this process whatever its other threads do."""
    _print(text)
    os._exit(TrainingError.exit_status)


def _print(text: str) -> None:
    # Past Python's buffers and locks, which another thread may hold; the reader may be gone.
    with contextlib.suppress(OSError):
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{text}\n".encode())


def _connect(host: str, port: int, hello: dict[str, Any]) -> socket.socket:
    try:
        connection = socket.create_connection((host, port), timeout=CONNECT)
        _send(connection, hello)
        return connection
    except OSError as error:
        raise UnreachedError(f"rank 0 at {host}:{port} cannot be reached: {error}",
                             next_step="name the interface that all hosts share with --network-interface") from error  # fmt: skip


def _send(connection: socket.socket, value: dict[str, Any]) -> None:
    connection.sendall(json.dumps(value).encode() + b"\n")


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(MAX_LINE)
    except OSError:
        return b""
