"""Open slides, kept for the next tile and bounded in number."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from anlage.slides.reader import SlideReader


class SlideHandles:
    """Lends open slides to threads, one borrower a handle, and reopens what was closed.

    A returned handle stays open for the next borrower of its slide; past ``max_idle`` of them the
    one unused for longest is closed. At most ``max_idle`` plus one a thread are open.

    Attributes:
        max_idle: Handles kept open while nobody reads them.
    """

    def __init__(self, open_slide: Callable[[str], SlideReader], *, max_idle: int) -> None:
        self.max_idle = max_idle
        self._open_slide = open_slide
        self._idle: OrderedDict[int, tuple[str, SlideReader]] = OrderedDict()
        self._of_slide: dict[str, list[int]] = {}
        self._n_returned = 0
        self._lock = threading.Lock()
        self._is_closed = False

    @contextmanager
    def borrow(self, slide_id: str) -> Iterator[SlideReader]:
        """An open slide for the time of a ``with`` block; closed, not kept, if the block raises."""
        slide = self._take(slide_id)
        if slide is None:
            slide = self._open_slide(slide_id)
        try:
            yield slide
        except BaseException:
            slide.close()
            raise
        for surplus in self._give_back(slide_id, slide):
            surplus.close()

    def close(self) -> None:
        """Close every idle handle, and from now on every one that is given back."""
        with self._lock:
            self._is_closed = True
            idle = [slide for _, slide in self._idle.values()]
            self._idle.clear()
            self._of_slide.clear()
        for slide in idle:
            slide.close()

    def _take(self, slide_id: str) -> SlideReader | None:
        with self._lock:
            tickets = self._of_slide.get(slide_id)
            if not tickets:
                return None
            slide = self._idle.pop(tickets.pop())[1]
            if not tickets:
                del self._of_slide[slide_id]
            return slide

    def _give_back(self, slide_id: str, slide: SlideReader) -> list[SlideReader]:
        """Keep a handle; returns those to close instead."""
        with self._lock:
            if self._is_closed:
                return [slide]
            self._n_returned += 1
            self._idle[self._n_returned] = (slide_id, slide)
            self._of_slide.setdefault(slide_id, []).append(self._n_returned)
            surplus = []
            while len(self._idle) > self.max_idle:
                ticket, (oldest_id, oldest) = self._idle.popitem(last=False)
                self._of_slide[oldest_id].remove(ticket)
                if not self._of_slide[oldest_id]:
                    del self._of_slide[oldest_id]
                surplus.append(oldest)
            return surplus
