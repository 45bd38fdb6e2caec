from __future__ import annotations

from anlage.embedding.slide_queue import MOST_SLIDES, SlideQueue


def drained(queue: SlideQueue) -> list[list[str]]:
    groups = []
    while queue:
        groups.append(queue.take())
    return groups


def test_every_slide_is_given_out_once_the_largest_first_and_single_ones_last():
    areas = {f"s{k:03d}": float(k % 37) for k in range(300)}
    groups = drained(SlideQueue(areas, n_workers=3))
    given = [slide_id for group in groups for slide_id in group]
    assert sorted(given) == sorted(areas)
    assert [areas[name] for name in given] == sorted(areas.values(), reverse=True)
    assert max(len(group) for group in groups) <= MOST_SLIDES
    of_tissue = [sum(areas[name] for name in group) for group in groups]
    assert of_tissue[0] <= sum(areas.values()) / 12
    assert of_tissue[0] > 5 * of_tissue[-1]


def test_one_giant_slide_is_a_group_and_slides_without_tissue_are_not_forgotten():
    groups = drained(SlideQueue({"giant": 1e6, "a": 1.0, "b": 0.0, "c": 0.0}, n_workers=2))
    assert groups[0] == ["giant"]
    assert sorted(name for group in groups[1:] for name in group) == ["a", "b", "c"]
    assert drained(SlideQueue({}, n_workers=2)) == []


def test_slides_of_a_dead_worker_come_back_alone_and_the_second_death_ends_it():
    queue = SlideQueue(dict.fromkeys("abcdefgh", 1.0), n_workers=1)
    first = queue.take()
    assert first == ["a", "b"]
    assert queue.put_back(first) == []
    assert len(queue) == 8
    assert (queue.take(), queue.take()) == (["a"], ["b"])
    assert queue.put_back(["b"]) == ["b"]
    assert [name for group in drained(queue) for name in group] == list("cdefgh")
