"""Independent tasks one after another here, or on a Ray cluster."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ._extras import need
from .errors import InvalidInput

ENGINES = ("local", "ray")
RETRIES = 5
"""How often a task is begun anew whose worker was lost."""


def scatter(
    task: Callable[..., Any],
    arguments: Iterable[tuple[Any, ...]],
    *,
    shared: Any = None,
    engine: str = "local",
    address: str | None = None,
    cpus: float = 1,
    gpus: float = 0,
) -> Iterator[tuple[int, Any]]:
    """(k, task(shared, *arguments[k])) for every k, in the order in which they finish.

    Args:
        task: a function of a module; its arguments and result are pickled for Ray.
        arguments: of every task; here they are asked for one by one.
        shared: what every task gets as its first argument, sent once to every machine.
        engine: "local" or "ray", where a task whose worker is lost is begun anew.
        address: of a running Ray cluster; None starts one on this machine.
        cpus, gpus: what Ray reserves for a task.

    Raises:
        InvalidInput: an unknown engine, Ray is not installed, or no cluster is at the address. What
            a task raises is raised here, after the others were stopped.
    """
    if engine not in ENGINES:
        raise InvalidInput(f"engine is {engine!r}, but must be one of {', '.join(ENGINES)}.")
    if engine == "local":
        if address is not None:
            raise InvalidInput(f"address is {address!r}, but needs the engine 'ray'.")
        for k, given in enumerate(arguments):
            yield k, task(shared, *given)
        return
    need("the engine 'ray'", "ray", extra="ray")
    import ray

    started = not ray.is_initialized()
    if started:
        _answers(address)
        ray.init(
            address=address, log_to_driver=False, include_dashboard=False,
            logging_level=logging.ERROR,
        )  # fmt: skip
    try:

        @ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)
        def work(*given: Any) -> Any:
            return task(*given)

        sent = ray.put(shared)
        waiting = {work.remote(sent, *given): k for k, given in enumerate(arguments)}
        while waiting:
            for done in ray.wait(list(waiting))[0]:
                try:
                    result = ray.get(done)
                except ray.exceptions.RayTaskError as error:
                    raise error.cause or error from None
                yield waiting.pop(done), result
    finally:
        if started:
            ray.shutdown()


def _answers(address: str | None) -> None:
    """Raise InvalidInput where nobody listens: Ray itself goes on trying for many minutes."""
    if address in (None, "auto", "local"):
        return
    host, _, port = str(address).removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InvalidInput(
            f"address is {address!r}, but no Ray cluster answers there ({error}). Give auto or "
            "HOST:PORT, as ray start --head names it."
        ) from error
