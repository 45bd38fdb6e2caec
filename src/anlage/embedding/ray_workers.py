"""Workers of a Ray cluster: placed by Ray, given one group of slides after another.

A worker is an actor. Ray finds a node with room for it, or waits for one, starts it there, and says
when its process or node is lost. Another takes its place then; Ray's own restarts (max_restarts)
are not used, since they cannot be told from a node that is only out of reach and works on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from anlage.embedding.encoder_facts import EncoderFacts
from anlage.embedding.ray_worker import GroupReport, RemoteWork, SlideWorker
from anlage.embedding.slide_queue import SlideQueue
from anlage.errors import DistributedError

LOGGER = logging.getLogger(__name__)
RAY, ENCODER = "ray", "the encoder"  # what errors are about
TELL_EVERY_S = 30.0
MOST_STARTS = 3  # of a worker that dies while it loads the encoder
OBJECT_STORE_BYTES = 2**27  # of a cluster of our own; reports are small and bypass it


@dataclass(frozen=True, kw_only=True, slots=True)
class RayOptions:
    """Which cluster, and how much of it.

    Attributes:
        address: ``HOST:PORT``, ``auto`` for the running cluster, ``local`` for one on this machine
            that ends with the run; None for the running one if there is one, else ``local``.
        workers: How many; None for as many as the cluster has room for at the start.
        cpus_per_worker: Processors that each reserves, above 0, and its threads of arithmetic; None
            for as many as it has threads that read.
        gpus_per_worker: GPUs that each reserves; below 1, several workers share one. None for one
            where the cluster has any.

    Raises:
        ValueError: If one is out of range.
    """

    address: str | None = None
    workers: int | None = None
    cpus_per_worker: float | None = None
    gpus_per_worker: float | None = None

    def __post_init__(self) -> None:
        rules = {
            "at least 1 worker": self.workers is None or self.workers >= 1,
            "cpus_per_worker above 0": self.cpus_per_worker is None or self.cpus_per_worker > 0,
            "gpus_per_worker of at least 0": (self.gpus_per_worker or 0) >= 0,
        }
        for rule, holds in rules.items():
            if not holds:
                msg = f"embed_on_ray: needs {rule}; got {self}. Correct that value."
                raise ValueError(msg)


def import_ray() -> Any:  # noqa: ANN401 - the module
    """Ray, if it is installed.

    Raises:
        DistributedError: If it is not.
    """
    # Started by `uv run`, Ray would otherwise carry the working folder, slides and all, to workers.
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
    try:
        import ray
    except ImportError as error:
        msg = "is not installed. Install anlage[ray], or leave out --engine ray."
        raise DistributedError(RAY, msg) from error
    return ray


@contextmanager
def connected(address: str | None) -> Iterator[Any]:
    """Ray, connected to a cluster; a connection that is there already is used and kept.

    Args:
        address: See ``RayOptions``.

    Yields:
        The module.

    Raises:
        DistributedError: If Ray is not installed, or there is no such cluster.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield ray
        return
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if address != "local":
            ray.init(address or "auto", **quiet)
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address is not None:
            msg = f"no Ray cluster answers: {error} Start one (ray start --head), or name local."
            raise DistributedError(address, msg) from error
    try:
        if not ray.is_initialized():
            own = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
            ray.init("local", **own, **quiet)
        yield ray
    finally:
        ray.shutdown()


class Outcome(NamedTuple):
    """What became of a group.

    Attributes:
        slide_ids: The group.
        report: What its worker told; None if that died.
        death: How it died.
    """

    slide_ids: list[str]
    report: GroupReport | None
    death: str = ""


class RayWorkers:
    """The workers of one run; a context manager, at whose end they are gone.

    Args:
        ray: The module, connected.
        work: What they are told.
        options: How many, and what each reserves.

    Attributes:
        n_workers: How many there are, or will be when there is room.
        devices: Where those that came run the encoder.
    """

    def __init__(self, ray: Any, work: RemoteWork, options: RayOptions) -> None:  # noqa: ANN401
        self._ray = ray
        gpus = options.gpus_per_worker
        if gpus is None:
            gpus = 1 if ray.cluster_resources().get("GPU") else 0
        cpus = options.cpus_per_worker or work.settings.threads
        self._asks = {"CPU": cpus, "GPU": gpus}
        self.n_workers = options.workers or max(self._room(), 1)
        self.devices: set[str] = set()
        self._facts: EncoderFacts | None = None
        self._work = work
        self._worker = ray.remote(num_cpus=cpus, num_gpus=gpus)(SlideWorker)
        self._starting: dict[Any, tuple[Any, int]] = {}  # by the answer awaited: actor, deaths
        self._all: list[Any] = []
        self._idle: list[Any] = []
        self._working: dict[Any, tuple[Any, list[str]]] = {}
        self._last_death = ""
        for _ in range(self.n_workers):
            self._start()

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._all:
            self._ray.kill(actor)

    def facts(self) -> EncoderFacts:
        """What the first worker says of the encoder; waits for it.

        Raises:
            AnlageError: If it cannot open the encoder or the catalogue, or does not see a file.
        """
        while self._facts is None:
            for _ in self._arrived():
                pass
        return self._facts

    def work_off(self, queue: SlideQueue) -> Iterator[Outcome]:
        """Give out groups until none is left; a group whose worker died may be put back meanwhile.

        Raises:
            DistributedError: If no worker is left, or one has another encoder than the others.
            AnlageError: What ended a worker's work; also OSError.
        """
        while queue or self._working:
            while queue and self._idle:
                actor, group = self._idle.pop(), queue.take()
                self._working[actor.embed.remote(group)] = actor, group
            yield from self._arrived()

    def _room(self) -> int:
        """How many workers fit on the nodes there are."""
        asks = {name: amount for name, amount in self._asks.items() if amount}
        has = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        return sum(min(int(each.get(k, 0) / amount) for k, amount in asks.items()) for each in has)

    def _start(self, *, n_deaths: int = 0) -> None:
        """Have a worker open its encoder, as soon as Ray has placed it."""
        actor = self._worker.remote(self._work)
        self._all.append(actor)
        self._starting[actor.ready.remote()] = actor, n_deaths

    def _arrived(self) -> Iterator[Outcome]:
        """Wait for news of any worker."""
        waiting = [*self._starting, *self._working]
        if not waiting:
            msg = f"no worker is left: each died while it loaded the encoder. {self._last_death}"
            raise DistributedError(RAY, msg)
        finished, _ = self._ray.wait(waiting, num_returns=1, timeout=TELL_EVERY_S)
        if not finished and not self._working:
            free = self._ray.available_resources()
            has = {name: free.get(name, 0) for name in self._asks}
            told = "waiting for a worker to be placed and to start: it asks for %s; free are %s"
            LOGGER.warning(told, self._asks, has)
        for ref in finished:
            if ref in self._starting:
                self._welcome(ref, *self._starting.pop(ref))
            else:
                yield self._ended(ref, *self._working.pop(ref))

    def _welcome(self, ref: Any, actor: Any, n_deaths: int) -> None:  # noqa: ANN401 - of Ray
        facts = self._answer(ref)
        if isinstance(facts, str):
            self._bury(actor, facts)
            if n_deaths + 1 < MOST_STARTS:
                self._start(n_deaths=n_deaths + 1)
                return
            self.n_workers -= 1
            LOGGER.warning("a worker died %d times at its start: %s", MOST_STARTS, facts)
            return
        self._facts = self._facts or facts
        for name in ("fingerprint", "precision", "width"):
            here, there = getattr(self._facts, name), getattr(facts, name)
            if here != there:
                msg = f"has {name} {here} on one node and {there} on another; name one --precision"
                raise DistributedError(ENCODER, f"{msg}, and put one file for all.")
        self.devices.add(facts.device)
        self._idle.append(actor)

    def _ended(self, ref: Any, actor: Any, group: list[str]) -> Outcome:  # noqa: ANN401 - of Ray
        report = self._answer(ref)
        if isinstance(report, str):
            self._bury(actor, report)
            self._start()
            return Outcome(group, None, report)
        self._idle.append(actor)
        return Outcome(group, report)

    def _bury(self, actor: Any, death: str) -> None:  # noqa: ANN401 - of Ray
        """See to it that a worker that is lost does nothing any more, should it still be there."""
        self._all.remove(actor)
        self._ray.kill(actor)
        self._last_death = death

    def _answer(self, ref: Any) -> Any:  # noqa: ANN401 - what the worker returned
        """What a worker returned; as text, how it died; what it raised is raised here."""
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as error:
            raise error.cause from error
        except errors.RayError as error:
            return str(error).strip().splitlines()[0]
