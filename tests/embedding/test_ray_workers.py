"""Workers that start, work, die and disagree as a test wants it, on a stand-in for Ray."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from small_encoder import make_config

from anlage.embedding.encoder_facts import EncoderFacts
from anlage.embedding.ray_worker import GroupReport, RemoteWork
from anlage.embedding.ray_workers import RayOptions, RayWorkers
from anlage.embedding.settings import EmbedSettings
from anlage.embedding.slide_queue import SlideQueue
from anlage.errors import DistributedError

FACTS = EncoderFacts(make_config(), "f" * 64, "fp32", 24, 8, 24, "cpu")
WORK = RemoteWork(
    encoder="e", catalogue="c", catalogue_fingerprint="f", output="o", settings=EmbedSettings()
)


class LostError(Exception):
    """What Ray says of a worker that is gone."""


class RaisedError(LostError):
    """What Ray says of an error that a worker raised."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class Answer:
    """What a call will have given, and to which group."""

    def __init__(self, group: list[str] | None, given: Any) -> None:
        self.group, self.given = group, given


class Method:
    def __init__(self, ask: Callable[..., Answer]) -> None:
        self.remote = ask


class Actor:
    """Answers by a list: to ``ready()`` first, then to each group."""

    def __init__(self, answers: Sequence[Any], groups: list[list[str]]) -> None:
        self._answers, self._groups = iter(answers), groups
        self.ready, self.embed = Method(self._ask), Method(self._ask)

    def _ask(self, group: list[str] | None = None) -> Answer:
        self._groups += [group] if group else []
        return Answer(group, next(self._answers))


class StandIn:
    """Ray, whose actors are given what they will answer; the oldest call is answered first."""

    exceptions = SimpleNamespace(RayError=LostError, RayTaskError=RaisedError)

    def __init__(self, *answers: Sequence[Any]) -> None:
        self._answers = list(answers)
        self.asked: dict[str, float] = {}
        self.groups: list[list[str]] = []
        self.killed: list[Actor] = []

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 16, "GPU": 1}

    def nodes(self) -> list[dict[str, Any]]:
        here, gone = {"CPU": 16, "GPU": 1}, {"CPU": 64, "GPU": 8}
        return [{"Alive": True, "Resources": here}, {"Alive": False, "Resources": gone}]

    def remote(self, **asked: float) -> Any:
        self.asked = asked
        made = Method(lambda work: Actor(self._answers.pop(0), self.groups))
        return lambda _: made

    def wait(self, answers: list[Answer], **_: object) -> tuple[list[Answer], list[Answer]]:
        return answers[:1], answers[1:]

    def get(self, answer: Answer) -> Any:
        if isinstance(answer.given, Exception):
            raise answer.given
        return done(answer.group) if answer.group else answer.given

    def kill(self, actor: Actor) -> None:
        self.killed.append(actor)


def done(group: list[str]) -> GroupReport:
    none: dict[str, Any] = {"skipped": [], "empty": [], "elsewhere": [], "refused": []}
    return GroupReport(done=group, **none, n_tiles=len(group), wait_s=0.0, forward_s=0.0)


def work_off(ray: StandIn, options: RayOptions, names: str = "abcd") -> list[str]:
    """Slides that were made, in that order; those of the dead are put back."""
    queue = SlideQueue(dict.fromkeys(names, 1.0), n_workers=1)
    made: list[str] = []
    with RayWorkers(ray, WORK, options) as workers:
        assert workers.facts() == FACTS
        for outcome in workers.work_off(queue):
            made += outcome.report.done if outcome.report else []
            if outcome.report is None:
                assert outcome.death == "a node is gone"
                queue.put_back(outcome.slide_ids)
    assert len(ray.killed) == len(set(map(id, ray.killed)))
    return made


def test_workers_reserve_what_was_asked_for_and_fill_the_nodes_there_are():
    ray = StandIn(*[[FACTS]] * 8)
    assert RayWorkers(ray, WORK, RayOptions()).n_workers == 1  # a GPU each
    assert ray.asked == {"num_cpus": 2, "num_gpus": 1}
    assert RayWorkers(ray, WORK, RayOptions(gpus_per_worker=0.25)).n_workers == 4
    assert ray.asked == {"num_cpus": 2, "num_gpus": 0.25}
    options = RayOptions(gpus_per_worker=0, cpus_per_worker=6)
    assert RayWorkers(ray, WORK, options).n_workers == 2


def test_what_a_dead_worker_had_is_given_out_again_and_another_takes_its_place():
    ray = StandIn([FACTS, LostError("a node is gone\nand more")], [FACTS, *[None] * 4])
    assert work_off(ray, RayOptions(workers=1)) == ["a", "b", "c", "d"]
    assert ray.groups == [["a"], ["a"], ["b"], ["c"], ["d"]]
    assert len(ray.killed) == 2  # the lost one, should it still work, and the last at the end


def test_a_worker_that_dies_at_every_start_is_given_up_and_others_go_on():
    dies = [[LostError("no memory")]] * 3
    ray = StandIn(dies[0], [FACTS, *[None] * 4], *dies[1:])
    assert work_off(ray, RayOptions(workers=2)) == ["a", "b", "c", "d"]
    with (
        pytest.raises(DistributedError, match=r"no worker is left.*encoder\. no memory"),
        RayWorkers(StandIn(*dies), WORK, RayOptions(workers=1)) as workers,
    ):
        workers.facts()


@pytest.mark.parametrize("change", [{"fingerprint": "e" * 64}, {"precision": "bf16"}])
def test_workers_with_another_encoder_or_precision_end_the_run(change):
    ray = StandIn([FACTS, None], [replace(FACTS, **change)])
    with pytest.raises(DistributedError, match=f"has {next(iter(change))} .* on one node and"):
        work_off(ray, RayOptions(workers=2))
    assert len(ray.killed) == 2


def test_what_a_worker_raises_is_raised_here():
    full = OSError(28, "No space left on device", "/data/bags/a.h5")
    with pytest.raises(OSError, match="No space left") as caught:
        work_off(StandIn([FACTS, RaisedError(full)]), RayOptions(workers=1))
    assert caught.value is full
