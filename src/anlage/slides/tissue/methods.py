"""The tissue methods by name: our own, and those that other packages add."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from anlage.errors import AnlageError, TissueError
from anlage.slides.tissue.clam import CLAM_MPP, tissue_by_clam
from anlage.slides.tissue.finder import Mask, Pixels, TissueFinder
from anlage.slides.tissue.otsu import find_tissue
from anlage.slides.tissue.thresholds import HSV_MPP, tissue_by_hsv, tissue_by_luminance

GROUP = "anlage.tissue_methods"
DEFAULT_METHOD = "otsu"


def _by_otsu(pixels: Pixels, mpp: float) -> Mask:
    return find_tissue(pixels, mpp=mpp)


OWN = {
    finder.name: finder
    for finder in (
        TissueFinder(name=DEFAULT_METHOD, find=_by_otsu),
        TissueFinder(name="hsv", find=tissue_by_hsv, mpp=HSV_MPP),
        TissueFinder(name="luminance", find=tissue_by_luminance),
        TissueFinder(name="clam", find=tissue_by_clam, mpp=CLAM_MPP),
    )
}


def tissue_methods() -> tuple[str, ...]:
    """Names of every method there is: our own first, then those of plug-ins, sorted."""
    return (*OWN, *sorted(_plugins()))


def tissue_method(name: str, *, weights: Path | None = None) -> TissueFinder:
    """A tissue method by name, ready to run.

    A package adds one with an entry point in the group ``anlage.tissue_methods``: a function that
    takes the path of its weights (or None) and gives a ``TissueFinder``. It is loaded, and its
    package imported, only when its method is asked for.

    Args:
        name: One of ``tissue_methods()``.
        weights: File or folder that the method's user supplies; None for a method without.

    Raises:
        TissueError: If there is no such method (the nearest is named), the weights are missing or
            not wanted, or the plug-in cannot be imported, fails or gives something else.
    """
    if weights is not None and not weights.exists():
        raise TissueError(name, f"needs its weights; {weights} does not exist. Check the path.")
    if name in OWN:
        if weights is not None:
            raise TissueError(name, f"takes no weights; got {weights}. Leave them out.")
        return OWN[name]
    plugins = _plugins()
    if name not in plugins:
        known = tissue_methods()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise TissueError(name, f"is no tissue method; there are {', '.join(known)}.{hint}")
    return _from_plugin(plugins[name], weights)


def _plugins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP) if point.name not in OWN}


def _from_plugin(point: EntryPoint, weights: Path | None) -> TissueFinder:
    """What a plug-in's factory gives, under its entry point's name."""
    where = f"plug-in {point.value}"
    try:
        factory: Callable[[Path | None], object] = point.load()
        made = factory(weights)
    except AnlageError:
        raise
    except Exception as error:  # another package's code, whatever it raises
        message = (
            f"cannot be set up by {where}: {type(error).__name__}: {error}. "
            f"Weights given: {weights or 'none'}. Correct the plug-in, or take another method."
        )
        raise TissueError(point.name, message) from error
    if not isinstance(made, TissueFinder):
        message = f"needs {where} to give a TissueFinder; got {type(made).__name__}. Correct it."
        raise TissueError(point.name, message)
    return replace(made, name=point.name)
