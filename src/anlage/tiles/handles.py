"""Open slides, shared by threads, kept for the next tile and bounded in number."""

from __future__ import annotations

import resource
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from anlage.slides.reader import SlideReader
from anlage.slides.storage.byte_source import NoRoomError

MAX_OPEN = 512
DESCRIPTORS_A_SLIDE = 2  # a file of its own, and as much again for formats of several files


class SharedSlide:
    """One open slide and how many borrow it. Made by ``SlideHandles`` alone."""

    def __init__(self, slide_id: str) -> None:
        self.slide_id = slide_id
        self.opening: Future[SlideReader] = Future()
        self.n_users = 0
        self.is_kept = True  # the next borrower of this slide gets this handle

    @property
    def slide(self) -> SlideReader:
        """The open slide; waits for the thread that opens it, and raises what that thread did."""
        return self.opening.result()


class SlideHandles:
    """Lends each open slide to any number of threads at once, and reopens what failed.

    A slide is opened once however many threads ask for it. A handle that nobody uses stays open;
    past ``max_open`` of them the one unused for longest is closed. All unused ones are closed where
    a slide has to be copied to this machine and theirs leave no room. One that a borrower calls
    damaged is not lent again: the next borrower opens the slide anew.

    Attributes:
        max_open: Handles kept open; those in use may exceed it. Never more than half of what the
            process may open.
    """

    def __init__(
        self, open_slide: Callable[[str], SlideReader], *, max_open: int = MAX_OPEN
    ) -> None:
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limit = max_open if descriptors < 0 else descriptors // (2 * DESCRIPTORS_A_SLIDE)
        self.max_open = max(min(max_open, limit), 1)
        self._open_slide = open_slide
        self._kept: OrderedDict[str, SharedSlide] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()
        self._is_closed = False

    def take(self, slide_id: str) -> SharedSlide:
        """Borrow a slide, opening it where needed; ``give_back`` must follow.

        Raises:
            AnlageError: If it cannot be opened; nothing is borrowed then.
        """
        with self._lock:
            shared = self._kept.get(slide_id)
            is_new = shared is None
            if shared is None:
                shared = self._kept[slide_id] = SharedSlide(slide_id)
            self._kept.move_to_end(slide_id)
            shared.n_users += 1
            surplus = self._past_the_bound()
        _close(surplus)
        try:
            if is_new:
                self._open(shared)
            shared.slide  # noqa: B018 - waits for the thread that opens it
        except BaseException:
            self.give_back(shared, is_damaged=True)
            raise
        return shared

    def give_back(self, shared: SharedSlide, *, is_damaged: bool = False) -> None:
        """End a loan; ``is_damaged`` says that a read failed, so that the slide is reopened."""
        with self._lock:
            shared.n_users -= 1
            if is_damaged or self._is_closed:
                self._forget(shared)
            surplus = [] if shared.n_users or shared.is_kept else [shared]
            surplus += self._past_the_bound()
        _close(surplus)

    @contextmanager
    def borrow(self, slide_id: str) -> Iterator[SlideReader]:
        """An open slide for the time of a ``with`` block; reopened next time if the block raises.

        Raises:
            AnlageError: If the slide cannot be opened.
        """
        shared = self.take(slide_id)
        try:
            yield shared.slide
        except BaseException:
            self.give_back(shared, is_damaged=True)
            raise
        self.give_back(shared)

    def close(self) -> None:
        """Close every unused handle, and from now on every one that is given back."""
        with self._lock:
            self._is_closed = True
            idle = [shared for shared in self._kept.values() if not shared.n_users]
            for shared in list(self._kept.values()):
                self._forget(shared)
        _close(idle)

    def _open(self, shared: SharedSlide) -> None:
        try:
            shared.opening.set_result(self._opened(shared.slide_id))
        except BaseException as error:
            shared.opening.set_exception(error)
            raise

    def _opened(self, slide_id: str) -> SlideReader:
        try:
            return self._open_slide(slide_id)
        except NoRoomError:
            self._close_unused()
        return self._open_slide(slide_id)

    def _close_unused(self) -> None:
        with self._lock:
            unused = [shared for shared in self._kept.values() if not shared.n_users]
            for shared in unused:
                self._forget(shared)
        _close(unused)

    def _forget(self, shared: SharedSlide) -> None:
        shared.is_kept = False
        if self._kept.get(shared.slide_id) is shared:
            del self._kept[shared.slide_id]

    def _past_the_bound(self) -> list[SharedSlide]:
        """Unused handles to close, forgotten already."""
        excess = len(self._kept) - self.max_open
        if excess <= 0:
            return []
        unused = [shared for shared in self._kept.values() if not shared.n_users][:excess]
        for shared in unused:
            self._forget(shared)
        return unused


def _close(surplus: list[SharedSlide]) -> None:
    for shared in surplus:
        if shared.opening.exception() is None:
            shared.slide.close()
