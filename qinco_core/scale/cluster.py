"""Ray: a cluster that is running, or one on this machine for as long as it is needed."""

from __future__ import annotations

import itertools
import os
import platform
import signal
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

from qinco_core.errors import ClusterError, QincoError
from qinco_core.optional import import_ray
from qinco_core.store.artifact import writer_version

T = TypeVar("T")
# times that what a dying worker had begun is begun anew, before it is taken for the reason of its death
RETRIES = 5
# results that may wait for one before them, as many times as are worked on
_AHEAD = 4
# of a cluster that this process starts: results are small, and read at once
_OBJECT_BYTES = 256 << 20
_WAIT_SECONDS, _REACH_SECONDS = 5.0, 10.0


@contextmanager
def connected(address: str | None = None, *, cpus: int | None = None) -> Iterator[ModuleType]:
    """The `ray` module, connected to a cluster for the length of the block.

    Args:
        address: of the cluster, as `ray.init` takes it; "auto": the one this machine belongs to. By default that of
            `$RAY_ADDRESS`, else one is started on this machine and stopped at the end. Where this process is connected
            already, it stays so.
        cpus: of a cluster that is started; by default all.

    Raises:
        ClusterError: it cannot be reached.
        DependencyError: Ray is not installed.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(address)
    own = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": _OBJECT_BYTES}
    with _signals_kept():
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR", **(own if address == "local" else {}))
        except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
            raise ClusterError(
                f"no Ray cluster at {address} ({_first_line(error)}); check the address, or leave --address out to use "
                "this machine alone"
            ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Refuse at once an address where nobody answers, which Ray would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=_REACH_SECONDS).close()
    except OSError as error:
        raise ClusterError(f"no Ray cluster answers at {address} ({error}); check the address") from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back the handlers of signals that the block replaces; only the main thread has a say in them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def cpus_of(ray: ModuleType, each: int = 1) -> int:
    """CPUs of the cluster as it is now.

    Raises:
        ClusterError: no machine of it has as many as each worker wants.
    """
    nodes = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    if max(nodes, default=0) < each:
        raise ClusterError(f"a worker wants {each} CPUs, but no machine of the cluster has them: use fewer --threads")
    return sum(nodes)


def check_version(version: str) -> None:
    """Check, in a worker, that it runs the qinco that the job does.

    Raises:
        ClusterError: it does not.
    """
    if writer_version() != version:
        raise ClusterError(
            f"{platform.node()} has qinco {writer_version()}, but the job is of {version}: have one version everywhere"
        )


def results_in_order(
    ray: ModuleType, submit: Callable[[T], Any], items: Iterable[T], room: Callable[[], int]
) -> Iterator[tuple[T, Any]]:
    """Have items worked on, and give each with its result, in their order.

    Args:
        ray: connected.
        submit: begins the work on an item and returns the reference of its result.
        items: taken one by one, as far ahead as there is room.
        room: how many to work on at the same time, asked again and again.

    Raises:
        QincoError: as of `fetch`; what was begun is cancelled then.
    """
    items = iter(items)
    pending: deque[tuple[T, Any]] = deque()
    try:
        while True:
            busy = _unfinished(ray, [ref for _, ref in pending])
            most = room()
            for item in itertools.islice(items, max(0, min(most - len(busy), _AHEAD * most - len(pending)))):
                ref = submit(item)
                pending.append((item, ref))
                busy.append(ref)
            if not pending:
                return
            if pending[0][1] in busy:
                ray.wait(busy, num_returns=1, timeout=_WAIT_SECONDS)
            else:
                item, ref = pending.popleft()
                yield item, fetch(ray, ref)
    finally:
        for _, ref in pending:
            ray.cancel(ref, force=True)


def _unfinished(ray: ModuleType, refs: list[Any]) -> list[Any]:
    if not refs:
        return []
    return list(ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)[1])


def fetch(ray: ModuleType, refs: Any) -> Any:
    """Results by their references, one or a list of them.

    Raises:
        ClusterError: workers died again and again, or cannot run this program.
        QincoError, MemoryError, OSError: what the work raised.
    """
    try:
        return ray.get(refs)
    except ray.exceptions.RayTaskError as error:
        cause = error.cause
        if isinstance(cause, (QincoError, MemoryError, OSError)):
            raise cause from None
        raise ClusterError(f"a worker failed with {type(cause).__name__}: {_first_line(cause)}") from error
    except ray.exceptions.RayError as error:
        raise ClusterError(
            f"workers died {1 + RETRIES} times over the same work, or cannot run this program "
            f"({type(error).__name__}: {_first_line(error)}); look for lack of memory, and for qinco on every machine"
        ) from error


def _first_line(error: object) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
