"""A command on the head that goes on while a host of the cluster dies."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.multinode.cluster import Cluster
from tests.multinode.hosts import awaited

_SECONDS = 300


@dataclass(frozen=True, kw_only=True)
class Ended:
    """A command that ended: its exit code, what it said, the seconds from the death to its end."""

    code: int
    said: str
    seconds: float


def survived(
    cluster: Cluster,
    *words: str,
    actor: str,
    begun: Callable[[], bool],
    replaced: bool = False,
) -> Ended:
    """Run `raycrt` with these words on the workers one and two; as soon as `begun()`, one of them
    dies on which there is an actor of the class `actor`.

    Worker three is off until then; if the dead one is `replaced`, three takes its place.
    """
    cluster.up("one", "two")
    log = cluster.shared / f"{words[0]}.log"
    with cluster.head.running(sys.executable, "-m", "raycrt", *words, log=log) as command:

        def works() -> bool:
            assert command.poll() is None, log.read_text()
            return begun() and bool(cluster.having(actor, "ALIVE"))

        awaited(f"work of {words[0]}", works)
        cluster.hosts[max(cluster.having(actor, "ALIVE"))].kill()
        died = time.monotonic()
        if replaced:
            cluster.start("three")
        awaited(f"the end of {words[0]}", lambda: command.poll() is not None, _SECONDS)
        return Ended(code=command.returncode, said=log.read_text(), seconds=time.monotonic() - died)
