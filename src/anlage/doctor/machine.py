"""What this machine can read, how fast, and what stands in the way."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import metadata
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from anlage import samples
from anlage.doctor.findings import Finding, State
from anlage.errors import AnlageError
from anlage.provenance import machine, versions

if TYPE_CHECKING:
    from anlage.slides.reader import SlideReader

QUICK_S = 0.5
TILE_PX = 256
FEW_FILES = 1024  # open files; a run holds hundreds of slides and its connections
LITTLE_DISK_GIB = 5.0
READERS = "anlage.slide_readers"
PLUG_INS = {READERS: "slide reader", "anlage.tissue_methods": "tissue method"}
CREDENTIALS = {
    "s3": (
        *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_ENDPOINT_URL"),
        "AWS_SKIP_SIGNATURE",
    ),
    "gs": ("GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_SKIP_SIGNATURE"),
    "az": (
        *("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_SAS_TOKEN"),
        "AZURE_SKIP_SIGNATURE",
    ),
    "https": (),
}


def examine(slides: Sequence[str] = ()) -> list[Finding]:
    """Look at everything that decides what this machine can read.

    Args:
        slides: Slides to open as well: files, folders, globs, URLs, catalogues (``.parquet``).

    Returns:
        The findings by part, in the order in which they are told. Passwords and keys are not
        among them: of a credential it is only said whether it is set.
    """
    return [
        *_versions(),
        *_codecs(),
        *_formats(),
        *_plug_ins(),
        *_remote(),
        *_machine(),
        *_speed(),
        *_slides(slides),
    ]


def _versions() -> Iterator[Finding]:
    from PIL import features

    told = versions()
    for package in ("openslide-python", "openslide-bin", "simplejpeg", "imagecodecs", "tifffile"):
        told[package] = _version(package)
    for package in ("obstore", "opencv-python-headless", "h5py", "pyarrow"):
        told[package] = _version(package)
    told["lcms (in Pillow)"] = features.version("littlecms2") or "missing"
    for name, version in told.items():
        state: State = "broken" if version == "missing" else "ok"
        yield Finding("version", name, state, version)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _codecs() -> Iterator[Finding]:
    import imagecodecs

    libraries = {
        "JPEG 2000": "JPEG2K",
        "JPEG XL": "JPEGXL",
        "WebP": "WEBP",
        "Deflate": "ZLIB",
        "LZW": "LZW",
    }
    yield Finding("codec", "JPEG", "ok", f"libjpeg-turbo in simplejpeg {_version('simplejpeg')}")
    for name, constant in libraries.items():
        library = getattr(imagecodecs, constant)
        if library.available:
            told = getattr(imagecodecs, f"{constant.lower()}_version")()
            yield Finding("codec", name, "ok", told)
        else:
            yield Finding("codec", name, "missing", "install an imagecodecs wheel that has it")


def _formats() -> Iterator[Finding]:
    yield Finding("format", "tiled TIFF", "ok", "Aperio SVS, OME, Philips, COG: natively, remote")
    yield Finding("format", "Deep Zoom", "ok", "natively")
    yield Finding("format", "PNG, JPEG", "ok", "natively")
    try:
        import openslide
    except (ImportError, OSError) as error:
        told = f"{error}. Run: pip install openslide-bin"
        yield Finding("format", "OpenSlide's", "broken", told)
    else:
        told = f"NDPI, MRXS, SCN, BIF and others by OpenSlide {openslide.__library_version__}"
        yield Finding("format", "OpenSlide's", "ok", told)
    if find_spec("wsidicom") is None:
        told = "needs wsidicom. Run: pip install 'anlage[dicom]'"
        yield Finding("format", "DICOM", "missing", told)
    else:
        yield Finding("format", "DICOM", "ok", f"natively with wsidicom {_version('wsidicom')}")


def _plug_ins() -> Iterator[Finding]:
    for group, what in PLUG_INS.items():
        for point in sorted(entry_points(group=group), key=lambda point: point.name):
            try:
                _refuse_no_reader(point.load(), group)
            except Exception as error:  # noqa: BLE001 - another package's code may fail in any way
                told = f"{what} {point.value}: {type(error).__name__}: {error}"
                yield Finding("plug-in", point.name, "broken", told)
            else:
                yield Finding("plug-in", point.name, "ok", f"{what} {point.value}")


def _refuse_no_reader(loaded: object, group: str) -> None:
    from anlage.slides.reader import SlideReader

    is_reader = isinstance(loaded, type) and issubclass(loaded, SlideReader)
    if group == READERS and not is_reader:
        msg = "is no subclass of SlideReader"
        raise TypeError(msg)


def _remote() -> Iterator[Finding]:
    for scheme, names in CREDENTIALS.items():
        there = [name for name in names if os.environ.get(name)]
        if not names:
            yield Finding("remote", f"{scheme}://", "ok", "no credentials needed")
        elif there:
            yield Finding("remote", f"{scheme}://", "ok", f"set: {', '.join(there)}")
        else:
            told = f"no credentials in the environment ({', '.join(names)})"
            yield Finding("remote", f"{scheme}://", "missing", told)


def _machine() -> Iterator[Finding]:
    told = machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else told["n_cores"]
    yield Finding("machine", "system", "ok", f"{platform.system()} {platform.machine()}")
    yield Finding("machine", "processor", "ok", f"{told['cpu']}, {cores} cores to use")
    yield Finding("machine", "memory", "ok", f"{told['memory_gib']} GiB")
    yield open_files()
    yield from _graphics(told["gpus"])
    yield from _disk()


def open_files() -> Finding:
    """Whether a process may open as many files as a run with many slides needs."""
    import resource

    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if 0 <= limit < FEW_FILES:
        told = f"{limit}; a run with many slides needs more: ulimit -n {4 * FEW_FILES}"
        return Finding("machine", "open files", "missing", told)
    return Finding("machine", "open files", "ok", str(limit))


def _graphics(names: Sequence[str]) -> Iterator[Finding]:
    import torch

    if not names:
        yield Finding("machine", "CUDA", "missing", "no CUDA device; everything runs on the CPU")
    for name in names:
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        yield Finding("machine", "CUDA", "ok", f"{name}, bf16 {'yes' if has_bf16 else 'no'}")


def _disk() -> Iterator[Finding]:
    from anlage.slides.storage.cache_folder import CACHE, cache_folder

    folder = cache_folder("indexes").parent
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(there, os.W_OK):
        told = f"{folder} cannot be written. Name another with {CACHE}"
        yield Finding("machine", "cache", "broken", told)
        return
    free_gib = shutil.disk_usage(there).free / 2**30
    state: State = "ok" if free_gib >= LITTLE_DISK_GIB else "missing"
    yield Finding("machine", "cache", state, f"{folder}, {free_gib:.0f} GiB free")


def _speed() -> Iterator[Finding]:
    from anlage.slides.reader import open_slide

    sample = samples.slides_folder() / "CMU-1-Small-Region.svs"
    try:
        with open_slide(sample) as slide:
            wide, high = (extent - TILE_PX for extent in slide.size)
            n_across = wide // TILE_PX

            def read(turn: int) -> None:
                x = turn % n_across * TILE_PX
                y = turn // n_across * TILE_PX % high
                slide.read_region(x, y, TILE_PX, TILE_PX)

            rate = _rate(read)
    except AnlageError as error:
        yield Finding("speed", "bundled sample", "broken", str(error))
        return
    told = f"{rate:,.0f} a second in one thread; `anlage bench io` measures your own"
    yield Finding("speed", f"{TILE_PX} px tiles of JPEG", "ok", told)


def _rate(call: Callable[[int], None]) -> float:
    """Calls a second of one thread, measured for half a second after one call."""
    call(0)
    began, n_calls = time.perf_counter(), 0
    while time.perf_counter() - began < QUICK_S:
        n_calls += 1
        call(n_calls)
    return n_calls / (time.perf_counter() - began)


def _slides(paths: Sequence[str]) -> Iterator[Finding]:
    from anlage.slides.indexing.discovery import find_slides
    from anlage.slides.reader import open_slide
    from anlage.slides.storage.location import file_name

    for path in paths:
        if Path(path).suffix == ".parquet":
            yield from _of_catalogue(path)
    others = [path for path in paths if Path(path).suffix != ".parquet"]
    if not others:
        return
    found, refused = find_slides(others)
    for slide in refused:
        yield Finding("slide", file_name(slide.uri) or slide.uri, "broken", slide.reason)
    for each in found:
        yield _opened(file_name(each.location), partial(open_slide, each.location))


def _of_catalogue(path: str) -> Iterator[Finding]:
    from anlage.slides.catalogue import Catalogue

    try:
        catalogue = Catalogue.open(path)
    except AnlageError as error:
        yield Finding("slide", path, "broken", error.message)
        return
    for row in catalogue.iter_rows():
        yield _opened(row.slide_id, partial(catalogue.open_slide, row.slide_id))


def _opened(name: str, opener: Callable[[], SlideReader]) -> Finding:
    try:
        with opener() as slide:
            size, resolution = slide.size, slide.resolution
            edge = slide.native_tile(0)
            told = [
                f"{slide.reader} ({slide.vendor})",
                f"{size.width} x {size.height} px",
                f"levels {', '.join(f'{level.downsample:g}' for level in slide.levels)}",
                f"tiles of {edge.width} x {edge.height}" if edge else "",
                _resolution(slide.mpp, resolution.source)
                if resolution
                else "no resolution: add an `mpp` column to the labels file",
                _profile(slide),
            ]
            slide.read_region(size.width // 2, size.height // 2, 1, 1)
    except (AnlageError, OSError) as error:
        told_of = error.message if isinstance(error, AnlageError) else str(error)
        return Finding("slide", name, "broken", told_of)
    state: State = "ok" if resolution else "broken"
    return Finding("slide", name, state, "; ".join(part for part in told if part))


def _profile(slide: SlideReader) -> str:
    from anlage.slides.colour import slide_converter

    try:
        slide_converter(slide, "srgb")
    except AnlageError as error:
        return f"for colour 'stored' only: {error.message}"
    return "with ICC profile" if slide.icc_profile else ""


def _resolution(mpp: float, source: str) -> str:
    return f"{mpp:.4g} µm per pixel ({source})"
