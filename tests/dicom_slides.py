"""Whole-slide images in DICOM, with known pixels: one file a level, or several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, VLWholeSlideMicroscopyImageStorage, generate_uid
from tiff_dialects import tiles_of

ICC = bytes(range(200))


@dataclass
class DicomWriter:
    """Writes the files of one series into a folder.

    Attributes:
        folder: Where to.
        tile: Height and width of a frame, pixels.
        syntax: Transfer syntax, by its UID.
        photometric: What the data set says of the colour.
        encode: Makes the bytes of a frame; None: they are not compressed.
        mpp: Of level 0, micrometres per pixel.
    """

    folder: Path
    tile: tuple[int, int] = (64, 112)
    syntax: str = ExplicitVRLittleEndian
    photometric: str = "RGB"
    encode: Callable[[np.ndarray], bytes] | None = None
    mpp: float = 0.25
    series: str = field(default_factory=generate_uid)
    study: str = field(default_factory=generate_uid)
    frame_of_reference: str = field(default_factory=generate_uid)
    extent: tuple[int, int] = (0, 0)

    def write_levels(self, levels: Sequence[np.ndarray], **how: Any) -> Path:
        """One file a level, each half of the one before; gives the first."""
        self.extent = levels[0].shape[:2]
        paths = [
            self.write(f"level{i}.dcm", level, downsample=2**i, **how)
            for i, level in enumerate(levels)
        ]
        return paths[0]

    def write(
        self,
        name: str,
        picture: np.ndarray,
        *,
        flavor: str = "VOLUME",
        downsample: int = 1,
        frames: Sequence[int] | None = None,
        change: Callable[[Dataset], None] = lambda dataset: None,
    ) -> Path:
        """One file with a whole picture, or a sparse one with some of its frames.

        Args:
            name: Of the file.
            picture: (H, W, 3) uint8.
            flavor: Third value of the image type.
            downsample: Level-0 pixels per pixel.
            frames: Numbers of the tiles that are there; None: all, in order.
            change: Called with the data set before it is written.
        """
        tile = self.tile if flavor == "VOLUME" else picture.shape[:2]  # else OpenSlide refuses it
        tiles = tiles_of(picture, tile)
        dataset = self._head(picture, flavor, downsample)
        dataset.Rows, dataset.Columns = tile
        if frames is not None:
            self._place(dataset, picture, frames)
            tiles = [tiles[i] for i in frames]
        dataset.NumberOfFrames = len(tiles)
        encoded = [tile.tobytes() if self.encode is None else self.encode(tile) for tile in tiles]
        dataset.PixelData = b"".join(encoded) if self.encode is None else encapsulate(encoded)
        dataset["PixelData"].VR = "OB"
        change(dataset)
        path = self.folder / name
        dataset.save_as(path, enforce_file_format=True)
        return path

    def write_parts(self, picture: np.ndarray, *, n_first: int) -> list[Path]:
        """A picture cut into two files, a concatenation."""
        self.extent = picture.shape[:2]
        tiles, uid = tiles_of(picture, self.tile), generate_uid()
        paths = []
        for number, (start, part) in enumerate([(0, tiles[:n_first]), (n_first, tiles[n_first:])]):

            def change(dataset: Dataset, *, part: Any = part, start: int = start) -> None:
                dataset.NumberOfFrames = len(part)
                dataset.PixelData = b"".join(tile.tobytes() for tile in part)
                dataset.ConcatenationUID = uid
                dataset.SOPInstanceUIDOfConcatenationSource = uid
                dataset.InConcatenationTotalNumber = 2
                dataset.ConcatenationFrameOffsetNumber = start

            paths.append(self.write(f"part{number}.dcm", picture, change=change))
        return paths

    def _head(self, picture: np.ndarray, flavor: str, downsample: int) -> Dataset:
        height, width = picture.shape[:2]
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = self.syntax
        dataset.file_meta.MediaStorageSOPClassUID = VLWholeSlideMicroscopyImageStorage
        dataset.SOPClassUID = VLWholeSlideMicroscopyImageStorage
        dataset.SOPInstanceUID = generate_uid()
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID = self.study, self.series
        dataset.FrameOfReferenceUID = self.frame_of_reference
        dataset.Modality = "SM"
        resampled = "NONE" if downsample == 1 else "RESAMPLED"
        dataset.ImageType = ["DERIVED", "PRIMARY", flavor, resampled]
        dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns = height, width
        dataset.TotalPixelMatrixFocalPlanes, dataset.NumberOfOpticalPaths = 1, 1
        dataset.ImagedVolumeHeight, dataset.ImagedVolumeWidth = (
            (extent or own) * self.mpp / 1000
            for extent, own in zip(self.extent, (height, width), strict=True)
        )
        dataset.ImagedVolumeDepth = 1.0
        dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 0
        dataset.PhotometricInterpretation = self.photometric
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelRepresentation = 0
        dataset.BurnedInAnnotation, dataset.SpecimenLabelInImage = "NO", "NO"
        dataset.FocusMethod, dataset.ExtendedDepthOfField = "AUTO", "NO"
        dataset.VolumetricProperties, dataset.DimensionOrganizationType = "VOLUME", "TILED_FULL"
        dataset.TotalPixelMatrixOriginSequence = [Dataset()]
        dataset.TotalPixelMatrixOriginSequence[0].XOffsetInSlideCoordinateSystem = 0
        dataset.TotalPixelMatrixOriginSequence[0].YOffsetInSlideCoordinateSystem = 0
        dataset.ImageOrientationSlide = [0, 1, 0, 1, 0, 0]
        measures = Dataset()
        measures.PixelSpacing = [self.mpp * downsample / 1000] * 2
        measures.SliceThickness = 1.0
        shared = Dataset()
        shared.PixelMeasuresSequence = [measures]
        dataset.SharedFunctionalGroupsSequence = [shared]
        optics = Dataset()
        optics.OpticalPathIdentifier, optics.ICCProfile = "1", ICC
        optics.ObjectiveLensPower = 40
        dataset.OpticalPathSequence = [optics]
        return dataset

    def _place(self, dataset: Dataset, picture: np.ndarray, frames: Sequence[int]) -> None:
        dataset.DimensionOrganizationType = "TILED_SPARSE"
        n_across = -(-picture.shape[1] // self.tile[1])
        dataset.PerFrameFunctionalGroupsSequence = []
        for frame in frames:
            row, column = divmod(frame, n_across)
            position = Dataset()
            position.RowPositionInTotalImagePixelMatrix = row * self.tile[0] + 1
            position.ColumnPositionInTotalImagePixelMatrix = column * self.tile[1] + 1
            position.XOffsetInSlideCoordinateSystem = 0
            position.YOffsetInSlideCoordinateSystem = 0
            position.ZOffsetInSlideCoordinateSystem = 0
            groups = Dataset()
            groups.PlanePositionSlideSequence = [position]
            dataset.PerFrameFunctionalGroupsSequence.append(groups)
