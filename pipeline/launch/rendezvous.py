"""The addresses that torch.distributed uses: loopback on one machine, the Ray node's address on a cluster.

PyTorch's default does not fit: its TCPStore listens on all interfaces without authentication, and gloo uses
the interface to which the host name resolves, which is often loopback.
"""

import importlib
import socket
from datetime import timedelta
from typing import Any

import psutil
from torch.distributed import TCPStore

from pipeline import environment


def use_loopback() -> None:
    """Let process groups of this process use a TCPStore on 127.0.0.1."""
    # PyTorch has no setting for the listen address. An import statement would give the function of this name.
    module = importlib.import_module("torch.distributed.rendezvous")
    vars(module)["_create_c10d_store"] = _create_loopback_store


def use_node_address() -> None:
    """Let process groups of this process use the network interface that has the Ray node's address."""
    import ray.util

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if address in (entry.address for entry in addresses):
            environment.use_interface(name)


def _create_loopback_store(
    host: str, port: int, rank: int, world_size: int, timeout: timedelta, *rest: Any, **more: Any
) -> TCPStore:
    if rank:
        return TCPStore("127.0.0.1", port, world_size, False, timeout, use_libuv=False)
    listener = socket.create_server(("127.0.0.1", port))
    return TCPStore(
        "127.0.0.1", port, world_size, True, timeout, master_listen_fd=listener.detach(), use_libuv=False
    )
