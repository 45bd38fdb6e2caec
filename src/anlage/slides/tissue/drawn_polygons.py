"""The polygons that somebody drew as tissue, out of a GeoJSON file, checked one by one.

Frame: as in the file, by custom level-0 pixels. Shape suffix: N positions of a ring.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anlage.errors import TissueError
from anlage.slides.tissue.outlines import Ring

MAX_BYTES = 256 * 2**20  # some 3 GB once parsed
MAX_SHOWN = 60
QUPATH = "In QuPath, select the tissue annotations and export the selected objects as GeoJSON."
WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")


class Polygon(NamedTuple):
    """One polygon: where it stands in the file, and its rings, the outer one first.

    A ring is (N, 2) float64 (x, y), finite, its first position not repeated as its last.
    """

    where: str
    rings: list[Ring]


class DrawnPolygons:
    """Iterates over a file's polygons of tissue, in order.

    Attributes:
        path: The file.
        classes: Names of the classes that are tissue; None for all but those that QuPath ignores
            (they end in ``*``) and those that begin with "ignore".
        left_out: What was passed over so far, by kind.
    """

    def __init__(self, path: Path, *, classes: Collection[str] | None = None) -> None:
        self.path, self.classes = path, classes
        self.left_out: Counter[str] = Counter()

    def __iter__(self) -> Iterator[Polygon]:
        for number, feature in enumerate(self._features(), start=1):
            if not isinstance(feature, dict):
                raise _misshapen(self.path, f"feature {number}", "an object", feature)
            given = feature.get("properties")
            properties = given if isinstance(given, dict) else {}
            kind = properties.get("objectType", "annotation")
            name = _class_name(properties)
            if kind != "annotation":
                self.left_out[_short(f"objectType {kind!r}")] += 1
            elif not self._counts(name):
                self.left_out[_short(f"class {name!r}")] += 1
            else:
                where = f"feature {number}" + (f" ({_short(name)})" if name else "")
                yield from self._polygons(where, feature.get("geometry"))

    def _features(self) -> list[Any]:
        tree = _parse(self.path)
        if isinstance(tree, list):
            return tree
        kind = tree.get("type") if isinstance(tree, dict) else None
        if kind == "FeatureCollection" and isinstance(tree.get("features"), list):
            return list(tree["features"])
        if kind == "Feature":
            return [tree]
        if kind in ("Polygon", "MultiPolygon"):
            return [{"geometry": tree}]
        raise _misshapen(self.path, "the file", "a FeatureCollection, Feature or list", tree)

    def _counts(self, name: str) -> bool:
        if self.classes is not None:
            return name in self.classes
        return not (name.endswith("*") or name.casefold().startswith("ignore"))

    def _polygons(self, where: str, geometry: object) -> Iterator[Polygon]:
        kind = geometry.get("type") if isinstance(geometry, dict) else None
        if kind in WITHOUT_AREA:
            self.left_out[str(kind)] += 1
        elif not isinstance(geometry, dict) or kind not in ("Polygon", "MultiPolygon"):
            raise _misshapen(self.path, where, "a Polygon or MultiPolygon", geometry)
        elif kind == "Polygon":
            yield self._polygon(where, geometry.get("coordinates"))
        else:
            for i, part in enumerate(self._listed(where, geometry.get("coordinates")), start=1):
                yield self._polygon(f"{where}, polygon {i}", part)

    def _polygon(self, where: str, rings: object) -> Polygon:
        listed = enumerate(self._listed(where, rings), start=1)
        return Polygon(where, [_ring(self.path, f"{where}, ring {i}", ring) for i, ring in listed])

    def _listed(self, where: str, value: object) -> list[Any]:
        if not isinstance(value, list) or not value:
            raise _misshapen(self.path, where, "a list of rings", value)
        return value


def _class_name(properties: dict[str, Any]) -> str:
    """QuPath's class of an object ("" for none), as an object or a plain string."""
    named = properties.get("classification")
    if isinstance(named, dict):
        names = named.get("names")
        named = named.get("name") or (": ".join(map(str, names)) if isinstance(names, list) else "")
    return str(named or "")


def _short(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def _parse(path: Path) -> Any:  # noqa: ANN401 - anything json can hold
    try:
        n_bytes = path.stat().st_size
        if n_bytes > MAX_BYTES:
            message = (
                f"has {n_bytes / 2**20:.0f} MB; at most {MAX_BYTES // 2**20} are read. {QUPATH}"
            )
            raise TissueError(path, message)
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise TissueError(path, f"cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise TissueError(path, f"is no GeoJSON: {error}. {QUPATH}") from error


def _ring(path: Path, where: str, positions: object) -> Ring:
    try:
        given = np.array(positions)
    except ValueError:  # not all of one length
        given = np.empty(0)
    is_list = given.ndim == 2 and given.shape[1] >= 2 and given.dtype.kind in "iuf"
    if not is_list or len(given) < 4:
        raise _misshapen(path, where, "a list of at least four positions [x, y]", positions)
    ring_N2 = given[:, :2].astype(np.float64)
    if not np.isfinite(ring_N2).all():
        bad = int(np.flatnonzero(~np.isfinite(ring_N2).all(axis=1))[0])
        raise _misshapen(path, f"{where}, position {bad + 1}", "finite", ring_N2[bad].tolist())
    if (ring_N2[0] != ring_N2[-1]).any():
        ends = ring_N2[[0, -1]].tolist()
        message = f"{where} needs to end where it begins; it runs from {ends[0]} to {ends[1]}."
        raise TissueError(path, f"{message} Repeat the first position as the last.")
    return ring_N2[:-1]


def _misshapen(path: Path, where: str, rule: str, got: object) -> TissueError:
    shown = _short(json.dumps(got))
    return TissueError(path, f"{where} needs to be {rule}; got {shown}. {QUPATH}")
