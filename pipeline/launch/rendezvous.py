"""Where workers meet: those of one machine on loopback, those of several on the address by which Ray knows each machine.

By itself PyTorch's store listens on every interface, and asks nobody who he is; and gloo takes the interface that the host's name
leads to, which often is loopback.
"""

import importlib
import socket
from datetime import timedelta
from typing import Any

import psutil
from torch.distributed import TCPStore

from pipeline import environment


def meet_on_loopback() -> None:
    """From here on the process group of this process is arranged through 127.0.0.1 only."""
    module = importlib.import_module(
        "torch.distributed.rendezvous"
    )  # an import statement finds the function of that name
    vars(module)["_create_c10d_store"] = _store  # PyTorch has no setting for the address that it listens on


def meet_on_own_address() -> None:
    """From here on the process group of this process uses the interface with the address by which Ray knows this machine."""
    import ray.util

    address = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if address in (known.address for known in addresses):
            environment.use_interface(name)


def _store(
    host: str, port: int, rank: int, world_size: int, timeout: timedelta, *rest: Any, **more: Any
) -> TCPStore:
    if rank:
        return TCPStore("127.0.0.1", port, world_size, False, timeout, use_libuv=False)
    listener = socket.create_server(("127.0.0.1", port))
    return TCPStore(
        "127.0.0.1", port, world_size, True, timeout, master_listen_fd=listener.detach(), use_libuv=False
    )
