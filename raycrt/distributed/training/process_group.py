"""The process group of a training, which listens on the cluster's own network alone.

Ray's default lets torch's store listen on every interface, on a port that the system chooses, and
the store takes anybody's connection. Here it listens on the address by which the cluster knows the
first worker's node, on one of `PORTS`; so do gloo and NCCL, on ports that the system chooses. If
all workers are on one node, everything is on loopback.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
import torch.distributed as dist
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

# Where a firewall lets the cluster's nodes in, and nobody else.
PORTS = range(20000, 20100)
_LOOPBACK = "127.0.0.1"

# The first worker's own end of the store, from `_listen` to `_join`.
_listening: list[dist.TCPStore] = []


@dataclass
class ProcessGroup(TorchConfig):
    """As Ray's `TorchConfig`, but bound to the cluster's network."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        try:
            self._meet(worker_group, backend_config)
        except Exception:
            # Ray Train forgets workers that do not meet, and what they have reserved stays so.
            worker_group.get_worker_group_state().shutdown()
            raise

    def _meet(self, worker_group: Any, backend_config: Any) -> None:
        addresses = worker_group.execute(ray.util.get_node_ip_address)
        if len(set(addresses)) == 1:
            addresses = [_LOOPBACK] * len(addresses)
        port = worker_group.execute_single(0, _listen, addresses[0])
        worker_group.execute(_set_torch_distributed_env_vars)
        gpus = worker_group.get_resources_per_worker().get("GPU", 0)
        # NCCL refuses two workers on one GPU; gloo adds their gradients in main memory.
        backend = backend_config.backend or ("nccl" if gpus >= 1 else "gloo")
        timeout = timedelta(seconds=backend_config.timeout_s)
        ray.get(
            [
                worker_group.execute_single_async(
                    rank, _join, rank, addresses, port, backend, timeout
                )
                for rank in range(len(addresses))
            ]
        )


def _listen(address: str) -> int:
    """Start the store on `address`; return its port, the first that is free."""
    for port in PORTS:
        bound = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((address, port))
            bound.listen()
        except OSError as error:
            bound.close()
            if error.errno != errno.EADDRINUSE:
                raise
            continue
        _listening[:] = [
            dist.TCPStore(
                address,
                port,
                is_master=True,
                wait_for_workers=False,
                master_listen_fd=bound.detach(),
            )
        ]
        return port
    raise RuntimeError(f"no port of {PORTS.start} to {PORTS.stop - 1} is free on {address}")


def _join(rank: int, addresses: list[str], port: int, backend: str, timeout: timedelta) -> None:
    name = interface(addresses[rank])
    os.environ["GLOO_SOCKET_IFNAME"] = name
    # NCCL reads a name as a prefix unless it begins with "=".
    os.environ["NCCL_SOCKET_IFNAME"] = f"={name}"
    store = _listening.pop() if rank == 0 else dist.TCPStore(addresses[0], port, timeout=timeout)
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=len(addresses), timeout=timeout
    )


def interface(address: str) -> str:
    """The name of this machine's network interface that has `address`."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address == address for entry in entries):
            return name
    raise RuntimeError(f"no network interface of this machine has the address {address}")
