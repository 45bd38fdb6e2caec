"""Find the slides that a URL means: one object, or all below a prefix."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import PurePosixPath

from anlage.errors import SlideError
from anlage.slides.indexing.found_slide import FoundSlide
from anlage.slides.storage.location import suffix_of

PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg"}


def find_remote_slides(
    url: str, suffixes: Collection[str], *, companions: Mapping[str, str]
) -> tuple[list[FoundSlide], str]:
    """The slides that a URL means, by name.

    Args:
        url: Of a file, if it ends in one of the suffixes or as a picture; else a prefix.
        suffixes: Endings of slides, lower case.
        companions: By suffix, the ending of the folder of the slide's data, which holds no slides.

    Returns:
        Slides with their size and version; if there is none, the second value says why.
    """
    try:
        if suffix_of(url) in {*suffixes, *PICTURE_SUFFIXES} and not url.endswith("/"):
            return [_one(url)], ""
        slides = _below(url)
    except SlideError as error:
        return [], error.message
    kept = [slide for slide in slides if suffix_of(slide.location) in suffixes]
    data = {
        str(PurePosixPath(slide.location).with_suffix("")) + companions[suffix_of(slide.location)]
        for slide in kept
        if suffix_of(slide.location) in companions
    }
    if data:
        kept = [slide for slide in kept if not _is_below(slide.location, data)]
    return kept, "holds no slide. Name the objects if they are PNG or JPEG."


def _is_below(location: str, folders: Collection[str]) -> bool:
    return any(str(parent) in folders for parent in PurePosixPath(location).parents)


def _one(url: str) -> FoundSlide:
    from anlage.slides.storage.byte_source import open_bytes

    source = open_bytes(url)
    return FoundSlide(url, (url,), source.size, source.version)


def _below(prefix: str) -> list[FoundSlide]:
    from anlage.slides.storage.object_store import list_slides_remote

    return [
        FoundSlide(file.uri, (file.uri,), file.size, file.version)
        for file in sorted(list_slides_remote(prefix), key=lambda file: file.uri)
    ]
