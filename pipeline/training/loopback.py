"""The workers of one machine meet on loopback. By itself PyTorch's store listens on every interface, and asks nobody who he is."""

import importlib
import socket
from datetime import timedelta
from typing import Any

from torch.distributed import TCPStore


def meet_on_loopback() -> None:
    """From here on the process group of this process is arranged through 127.0.0.1 only."""
    module = importlib.import_module("torch.distributed.rendezvous")  # an import statement finds the function of that name
    vars(module)["_create_c10d_store"] = _store  # PyTorch has no setting for the address that it listens on


def _store(host: str, port: int, rank: int, world_size: int, timeout: timedelta, *rest: Any, **more: Any) -> TCPStore:
    if rank:
        return TCPStore("127.0.0.1", port, world_size, False, timeout, use_libuv=False)
    listener = socket.create_server(("127.0.0.1", port))
    return TCPStore("127.0.0.1", port, world_size, True, timeout, master_listen_fd=listener.detach(), use_libuv=False)
