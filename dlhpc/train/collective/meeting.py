"""How ranks without MPI find each other: rank 0 opens a store and leaves its addresses in a file on shared storage.

The run directory is the one thing that all ranks are sure to share; names of hosts need not mean the same everywhere,
and launchers tell ranks their number but not where rank 0 is. The file may be an old one, shared storage may show a new
one late, and a node has several addresses of which not all are reached from everywhere. So the file holds a word that
the store must know too, and the others try all addresses, and read the file again, until one answers with that word.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed

from dlhpc.errors import CommandError, StorageError
from dlhpc.files import read_json, replace_json

PATIENCE_S = 600.0
"""How long ranks wait for each other at the start; torch alone may take minutes to load from a busy file system."""
_ANSWER = timedelta(seconds=5)
_PAUSE_S = 0.2
_stores: Any = torch.distributed  # which has them, but does not declare them


@dataclass(frozen=True)
class Met:
    """All ranks have found rank 0."""

    store: Any
    """A :class:`torch.distributed.Store`."""
    local_rank: int
    local_size: int


def meet(file: Path, rank: int, size: int, patience_s: float = PATIENCE_S) -> Met:
    """Find the other ranks through ``file``; :class:`CommandError` if they do not all come.

    Sets ``GLOO_SOCKET_IFNAME``, unless the site does, to the network interface by which the ranks reach each other: a
    host's name often means the loopback interface on the host itself.
    """
    until = time.monotonic() + patience_s
    host = socket.gethostname()
    if rank == 0:
        store, me = _open(file, host, patience_s), {"host": host, "own": None, "reached": None}
    else:
        store, own, reached = _find(file, host, until)
        me = {"host": host, "own": own, "reached": reached}
    store.set_timeout(timedelta(seconds=max(1.0, until - time.monotonic())))
    try:
        store.set(f"rank {rank}", json.dumps(me))
        everybody = [json.loads(store.get(f"rank {other}")) for other in range(size)]
    except RuntimeError as error:
        raise CommandError(
            f"rank {rank} waited {patience_s:.0f} s for the other {size - 1} ranks in vain",
            where=file,
            remedy="See the log for a rank that failed; `dlhpc resume` tries again.",
        ) from error
    name = interface(rank, everybody, addresses())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    hosts = [one["host"] for one in everybody]
    return Met(store, hosts[:rank].count(host), hosts.count(host))


def _open(file: Path, host: str, patience_s: float) -> Any:
    # Port 0: the system gives a free one, so that several runs share a node.
    store = _stores.TCPStore(
        "0.0.0.0",  # ranks on other nodes come by any interface
        0,
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=patience_s),
    )
    word = secrets.token_hex(8)
    store.set("word", word)
    names = dict.fromkeys((host, *addresses().values(), "127.0.0.1"))
    replace_json(file, {"hosts": list(names), "host": host, "port": store.port, "word": word})
    return store


def _find(file: Path, host: str, until: float) -> tuple[Any, str, str]:
    """The store of rank 0, and the addresses of this rank and of rank 0 on the way between them."""
    last = "the file was not there"
    while time.monotonic() < until:
        with contextlib.suppress(StorageError, KeyError, TypeError):
            told = read_json(file)
            names: list[str] = told["hosts"]
            # Loopback means another machine on every node but one.
            names = ["127.0.0.1", *names] if told["host"] == host else [n for n in names if not n.startswith("127.")]
            last = f"nobody answered at {', '.join(names)}, port {told['port']}"
            for name in names:
                with contextlib.suppress(OSError, RuntimeError):
                    with socket.create_connection((name, told["port"]), _ANSWER.total_seconds()) as way:
                        own, reached = str(way.getsockname()[0]), str(way.getpeername()[0])
                    store = _stores.TCPStore(
                        name, told["port"], is_master=False, wait_for_workers=False, timeout=_ANSWER
                    )
                    if store.get("word").decode() == told["word"]:
                        return store, own, reached
        time.sleep(_PAUSE_S)
    raise CommandError(
        f"rank 0 was not found: {last}",
        where=file,
        remedy="See the log for what rank 0 said; check that all nodes see this file system and reach each other's "
        "ports.",
    )


def interface(rank: int, everybody: Sequence[dict[str, Any]], known: dict[str, str]) -> str | None:
    """By which network interface ``rank`` is to talk to the others; ``known`` are its node's, name → IPv4 address."""
    first = everybody[0]["host"]
    away = [one for one in everybody if one["host"] != first]
    if not away:
        wanted = "127.0.0.1"
    else:
        wanted = away[0]["reached"] if everybody[rank]["host"] == first else everybody[rank]["own"]
    return next((name for name, address in known.items() if address == wanted), None)


def addresses() -> dict[str, str]:
    """The network interfaces of this node that have an IPv4 address."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has none
                answer = fcntl.ioctl(asker.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


_SIOCGIFADDR = 0x8915  # of Linux
