"""From bags to a tile list: filter, drop duplicates, cluster, retrieve, sample.

Shape suffixes: N tiles of the pool that are left, R of those that may be chosen, M of those that
are, T levels of clusters.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anlage.bags.one_encoder import ONE_ENCODER
from anlage.bags.store import list_bags
from anlage.curation.balanced_sample import balanced_sample, balanced_weights
from anlage.curation.hierarchical_kmeans import hierarchical_kmeans
from anlage.curation.near_duplicates import is_like_any, is_near_duplicate
from anlage.curation.pool import TilePool, read_pool, refuse_other_encoder
from anlage.curation.retrieval import cap_clusters, retrieve
from anlage.curation.tile_pixels import judge_tiles
from anlage.errors import BagError, CatalogueError
from anlage.files import write_json_whole
from anlage.provenance import git_commit, versions
from anlage.slides.catalogue import Catalogue
from anlage.tiles.filters import BlurFilter, TileFilter, TileFilters
from anlage.tiles.tile_list import TileList, write_tile_list

LOGGER = logging.getLogger(__name__)
Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
FORMAT = "curation/1"
LIST, RECORD = "tiles.parquet", "curation.json"
TILES_A_CLUSTER, CLUSTERS_A_CLUSTER, MOST_CLUSTERS = 50, 10, 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class CurateSettings:
    """What is done to a pool; each step is left out unless it is asked for, clustering excepted.

    Attributes:
        filters: Judges of the tiles' pixels, those of training.
        dedup: Cosine from which two tiles are the same; None to keep all.
        dedup_parts: Clusters (plain k-means) within which alone tiles are compared; 1 for all.
        held_out_cosine: Cosine to a held-out tile from which a tile is left out.
        levels: Clusters of each level, finest first; empty for none; None for a number that fits:
            one cluster for every 50 tiles, at most 10,000, and one for every ten of those.
        n_resamplings: Times that each level is resampled.
        k: Tiles that each query finds.
        per_cluster: Most tiles found that a finest cluster keeps; None for no limit.
        n_sample: Tiles of the list, drawn in equal shares of the clusters; None to list all, with
            weights that do the same.
        seed: Seed of clusters and sample.
    """

    filters: TileFilters = field(default_factory=TileFilters)
    dedup: float | None = None
    dedup_parts: int = 1
    held_out_cosine: float = 0.95
    levels: tuple[int, ...] | None = None
    n_resamplings: int = 10
    k: int = 5
    per_cluster: int | None = None
    n_sample: int | None = None
    seed: int = 0

    def as_json(self) -> dict[str, Any]:
        """All of them, as JSON can hold them."""
        chosen = {one.name: one for one in self.filters.chosen()}
        plain = asdict(self) | {"filters": {n: f.model_dump() for n, f in chosen.items()}}  # type: ignore[attr-defined]
        return json.loads(json.dumps(plain))  # type: ignore[no-any-return]


@dataclass(slots=True, eq=False)
class Curation:
    """What came of a pool.

    Attributes:
        output: The tile list.
        pool: The tiles that were clustered.
        path_NT: (N, T) their clusters, coarsest first.
        chosen_M: (M,) rows of the pool that are listed.
        weight_M: (M,) float64 their weights, 1 on average.
        counts: Tiles after each step, in order.
        rejected: Tiles that each filter rejected.
        refused: Bags and slides left out, with the reason.
        empty: Slides whose bag holds no tile.
    """

    output: Path
    pool: TilePool
    path_NT: Integers
    chosen_M: Integers
    weight_M: Floats
    counts: dict[str, int]
    rejected: dict[str, int] = field(default_factory=dict)
    refused: list[tuple[str, str]] = field(default_factory=list)
    empty: tuple[str, ...] = ()


def curate(
    bags: str,
    catalogue: Catalogue,
    output: str | Path,
    *,
    settings: CurateSettings,
    query: str | None = None,
    held_out: str | None = None,
    split: str | None = None,
    threads: int = 2,
) -> Curation:
    """Curate a pool of tiles into a list that training draws from.

    Args:
        bags: Folder or URL of the pool's bags, all of one encoder.
        catalogue: Of their slides.
        output: Folder to write ``tiles.parquet`` and ``curation.json`` to.
        settings: What is done.
        query: Bags of a query set: only tiles near its tiles are chosen.
        held_out: Bags of a test set: tiles of its slides and patients, and tiles like its tiles,
            are left out.
        split: Only slides with this value of the catalogue's ``split``.
        threads: Threads that read pixels, for the filters.

    Raises:
        BagError: If bags are missing, unusable, or not of one encoder; or nothing is left.
        CatalogueError: If the list is there already.
        ValueError: If a setting does not fit the pool: more clusters or tiles than there are.
        OSError: If the disk is full or refuses.
    """
    output = Path(output)
    refuse_existing(output)
    slides = catalogue if split is None else catalogue.select(split=split)
    pool = _known_pool(bags, catalogue, slides, split=split)
    made = Curation(
        *(output / LIST, pool, np.zeros((0, 0), dtype=np.int64), np.zeros(0, dtype=np.int64)),
        np.zeros(0),
        {"in the pool": len(pool)},
        refused=[(error.path, error.message) for error in pool.refused],
        empty=pool.empty,
    )
    sources = {"bags": _digest(pool.bag_sha256)}
    _filter(made, slides, settings, threads=threads)
    if settings.dedup is not None:
        _drop_duplicates(made, settings, threshold=settings.dedup)
    if held_out is not None:
        sources["held_out"] = _leave_out(
            made, catalogue, bags=bags, held_out=held_out, threshold=settings.held_out_cosine
        )
    _refuse_too_few(made, bags, settings)
    made.path_NT = _clusters(made.pool, settings)
    candidate_R = np.arange(len(made.pool))
    if query is not None:
        candidate_R, sources["query"] = _retrieved(made, bags, query, settings)
    _choose(made, candidate_R, settings)
    about = _about(made, catalogue, settings, sources)
    write_tile_list(made.output, _as_list(made, about))
    write_json_whole(output / RECORD, about | {"refused": made.refused, "empty": made.empty})
    return made


def refuse_existing(output: Path) -> None:
    """Refuse a folder that holds a list, before anything is done.

    Raises:
        CatalogueError: If there is one.
    """
    if (output / LIST).exists():
        raise CatalogueError(output / LIST, "is there already. Name another folder, or delete it.")


def fitting_levels(n_tiles: int) -> tuple[int, ...]:
    """Clusters of each level for a pool: one for every 50 tiles, and one for every ten of those."""
    finest = min(max(n_tiles // TILES_A_CLUSTER, 1), MOST_CLUSTERS)
    coarse = finest // CLUSTERS_A_CLUSTER
    return (finest, coarse) if coarse > 1 else (finest,)


def _known_pool(
    bags: str, catalogue: Catalogue, slides: Catalogue, *, split: str | None
) -> TilePool:
    """The pool; bags of other splits are passed over, those of unknown slides are refused."""
    fingerprint_of = dict(
        zip(
            catalogue.column("slide_id").to_pylist(),
            catalogue.column("fingerprint").to_pylist(),
            strict=True,
        )
    )
    wanted = None if split is None else frozenset(slides.column("slide_id").to_pylist())
    return read_pool(bags, slides=fingerprint_of, only=wanted)


def _filter(
    made: Curation, catalogue: Catalogue, settings: CurateSettings, *, threads: int
) -> None:
    mpp = made.pool.made.mpp
    filters = [_at(judge, mpp) for judge in settings.filters.chosen()]
    if not filters:
        return
    judged = judge_tiles(made.pool, catalogue, filters, threads=threads)
    made.rejected = dict(judged.rejected)
    made.refused += [
        (name, f"{judged.unreadable[name]} tiles could not be read: {told}")
        for name, told in judged.errors.items()
    ]
    _keep(made, judged.is_kept_N, "filters")


def _at(judge: TileFilter, mpp: float) -> TileFilter:
    """The filter for tiles of a resolution: focus is judged at theirs where they are coarser."""
    if isinstance(judge, BlurFilter) and judge.mpp < mpp:
        return judge.model_copy(update={"mpp": mpp})
    return judge


def _drop_duplicates(made: Curation, settings: CurateSettings, *, threshold: float) -> None:
    feature_ND, part_N = made.pool.feature_ND, None
    if settings.dedup_parts > 1:
        n_clusters = (settings.dedup_parts,)
        tree = hierarchical_kmeans(
            feature_ND, n_clusters=n_clusters, n_resamplings=0, seed=settings.seed
        )
        part_N = tree.cluster_of[0]
    _keep(made, ~is_near_duplicate(feature_ND, threshold=threshold, part_N=part_N), "dedup")


def _leave_out(
    made: Curation, catalogue: Catalogue, *, bags: str, held_out: str, threshold: float
) -> str:
    """Leave out slides and patients of a test set, then tiles like its own; its digest."""
    tests = read_pool(held_out)
    refuse_other_encoder(made.pool, bags, tests, held_out)
    made.refused += [(error.path, error.message) for error in tests.refused]
    patient_of = dict(
        zip(
            catalogue.column("slide_id").to_pylist(),
            catalogue.column("patient_id").to_pylist(),
            strict=True,
        )
    )
    names = set(list_bags(held_out))  # also those whose bag cannot be read
    patients = {patient_of[name] for name in names if name in patient_of}
    is_theirs = [n in names or patient_of[n] in patients for n in made.pool.slide_ids]
    _keep(made, ~np.array(is_theirs)[made.pool.slide_N], "held-out patients")
    if len(made.pool):
        like = is_like_any(made.pool.feature_ND, tests.feature_ND, threshold=threshold)
        _keep(made, ~like, "held-out tiles")
    return _digest(tests.bag_sha256)


def _keep(made: Curation, is_kept_N: NDArray[np.bool_], step: str) -> None:
    made.pool = made.pool.at(np.flatnonzero(is_kept_N))
    made.counts[f"after {step}"] = len(made.pool)


def _refuse_too_few(made: Curation, bags: str, settings: CurateSettings) -> None:
    n_tiles = len(made.pool)
    if n_tiles == 0:
        told = ", ".join(f"{step}: {n}" for step, n in made.counts.items())
        raise BagError(bags, f"no tile is left ({told}). Filter less, or add slides.")
    if settings.n_sample is not None and settings.n_sample > n_tiles:
        msg = (
            f"curate: needs a sample of at most the {n_tiles} tiles that are left; got "
            f"{settings.n_sample}. Ask for fewer, or drop fewer."
        )
        raise ValueError(msg)


def _clusters(pool: TilePool, settings: CurateSettings) -> Integers:
    levels = fitting_levels(len(pool)) if settings.levels is None else settings.levels
    if not levels:
        return np.zeros((len(pool), 0), dtype=np.int64)
    tree = hierarchical_kmeans(
        *(pool.feature_ND,),
        n_clusters=levels,
        n_resamplings=settings.n_resamplings,
        seed=settings.seed,
    )
    return tree.paths()


def _retrieved(
    made: Curation, bags: str, query: str, settings: CurateSettings
) -> tuple[Integers, str]:
    queries = read_pool(query)
    refuse_other_encoder(made.pool, bags, queries, query)
    made.refused += [(error.path, error.message) for error in queries.refused]
    found, cosine = retrieve(queries.feature_ND, made.pool.feature_ND, k=settings.k)
    made.counts["near the queries"] = len(found)
    if settings.per_cluster is not None and made.path_NT.shape[1]:
        found = found[cap_clusters(made.path_NT[found, -1], cosine, most=settings.per_cluster)]
        made.counts["after the cap"] = len(found)
    return found, _digest(queries.bag_sha256)


def _choose(made: Curation, candidate_R: Integers, settings: CurateSettings) -> None:
    path_RT = made.path_NT[candidate_R]
    if settings.n_sample is None:
        made.chosen_M, made.weight_M = candidate_R, balanced_weights(path_RT)
    else:
        drawn = balanced_sample(path_RT, settings.n_sample, seed=settings.seed)
        made.chosen_M, made.weight_M = candidate_R[drawn], np.ones(len(drawn))
    made.counts["listed"] = len(made.chosen_M)


def _as_list(made: Curation, about: dict[str, Any]) -> TileList:
    pool = made.pool.at(made.chosen_M)
    there, slide_M = np.unique(pool.slide_N, return_inverse=True)
    n_tiles = len(pool)
    return TileList(
        slide_ids=tuple(pool.slide_ids[slide] for slide in there),
        slide_N=slide_M.astype(np.int64),
        corner_N2=pool.corner_N2,
        mpp_N=np.full(n_tiles, pool.made.mpp),
        tile_px_N=np.full(n_tiles, pool.made.tile_px, dtype=np.int64),
        weight_N=made.weight_M,
        cluster_NT=made.path_NT[made.chosen_M],
        about={name: value for name, value in about.items() if name != "format"},
    )


def _about(
    made: Curation, catalogue: Catalogue, settings: CurateSettings, sources: dict[str, str]
) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "settings": settings.as_json(),
        "tiles": made.counts,
        "rejected": made.rejected,
        "clusters": [len(np.unique(level)) for level in made.path_NT.T],
        "encoder_name": made.pool.made.encoder_name,
        **{name: getattr(made.pool.made, name) for name in ONE_ENCODER},
        "catalogue": catalogue.fingerprint,
        **{f"{name}_sha256": digest for name, digest in sources.items()},
        "versions": versions(),
        "commit": git_commit(),
    }


def _digest(checksums: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(checksums).encode()).hexdigest()
