"""Where Horovod's own servers listen: the launcher's rendezvous, and what tells ranks of added hosts."""

from __future__ import annotations

import socketserver
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lakering.errors import TrainingError
from training.distributed.peers import address_of

Server = Callable[[tuple[str, int]], socketserver.TCPServer]


@contextmanager
def listening_on(interface: str | None) -> Iterator[None]:
    """Inside, the servers that Horovod starts in this process listen on one network interface alone; None changes nothing.

    Raises TrainingError when the interface has no IPv4 address, or no port of it is free."""
    if interface is None:
        yield
        return
    from horovod.runner.common.util import network
    from horovod.runner.http import http_server

    address = address_of(interface)

    def find_port(start: Server) -> tuple[socketserver.TCPServer, int]:
        try:
            server = start((address, 0))
        except OSError as error:
            raise TrainingError(f"no port of {address} ({interface}) can be listened on: {error}",
                                next_step="see which processes hold the ports: ss -tlnp") from error  # fmt: skip
        return server, server.server_address[1]

    # Horovod binds to all interfaces and has no setting for it: its rendezvous asks for no password and unpickles.
    before = [(module, module.find_port) for module in (http_server, network)]
    try:
        for module, _ in before:
            module.find_port = find_port
        yield
    finally:
        for module, original in before:
            module.find_port = original
