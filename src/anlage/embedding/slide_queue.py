"""Slides that wait for a worker: the largest first, in groups, and none more than twice."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Mapping, Sequence

ROUNDS = 4  # groups that each worker would take of what is left
MOST_SLIDES = 32  # of a group: all that a worker that dies can cost
MOST_DEATHS = 2


class SlideQueue:
    """Groups of slides for workers that may die.

    A group holds a fourth of a worker's even share of the tissue that is left: large groups first,
    in which a worker reads ahead from slide to slide, and single slides at the end, so that all end
    at about the same time. Slides whose worker died are given out one by one, so that the next
    death tells which of them it was.

    Args:
        areas: By slide_id, what is to be shared evenly, at least 0.
        n_workers: How many ask.

    Source: Polychronopoulos and Kuck 1987, Guided self-scheduling.
    """

    def __init__(self, areas: Mapping[str, float], *, n_workers: int) -> None:
        ordered = sorted(areas, key=lambda slide_id: (-areas[slide_id], slide_id))
        self._waiting = deque((slide_id, areas[slide_id]) for slide_id in ordered)
        self._left = sum(areas.values())
        self._share = 1 / (ROUNDS * max(n_workers, 1))
        self._suspects: deque[str] = deque()
        self._deaths: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._suspects)

    def take(self) -> list[str]:
        """The next group, at least one slide of those that are left."""
        if self._suspects:
            return [self._suspects.popleft()]
        group, area, wanted = list[str](), 0.0, self._left * self._share
        while self._waiting and len(group) < MOST_SLIDES:
            slide_id, its_area = self._waiting[0]
            if group and area + its_area > wanted:
                break
            self._waiting.popleft()
            group.append(slide_id)
            area += its_area
        self._left -= area
        return group

    def put_back(self, slide_ids: Sequence[str]) -> list[str]:
        """Take back what a worker had not finished when it died.

        Returns:
            Those whose worker died for the second time, which are not given out again.
        """
        self._deaths.update(slide_ids)
        self._suspects += [each for each in slide_ids if self._deaths[each] < MOST_DEATHS]
        return [each for each in slide_ids if self._deaths[each] >= MOST_DEATHS]
