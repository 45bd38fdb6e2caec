"""Every exception of anlage: one root, so that a caller can catch us.

AnlageError                 the world is wrong: a file, a slide, a row
├── SlideError              a slide cannot be opened or read; carries the path
│   └── ResolutionError     a slide does not say, or absurdly says, how large its pixels are
├── StainError              pixels do not tell of two stains
├── CatalogueError          a catalogue or a table joined to it is unusable
├── RecipeError             a recipe has an unknown, missing or contradictory key
├── CheckpointError         a checkpoint is damaged, or was made by another configuration
├── EncoderError            an encoder folder is incomplete or not what it says
├── BagError                a bag is damaged, or belongs to another encoder or grid
├── TissueError             a tissue method, its plug-in, or a mask from its user is unusable
├── LabelledDataError       labelled tiles for a probe are unusable
├── DeviceError             the device asked for is not on this machine
├── DistributedError        other processes of a job cannot be reached, or are lost
└── TrainingError           training cannot go on: a loss is not finite, no slide can be read

A wrong argument from a programmer is a ``ValueError`` or ``TypeError`` instead.
"""

from __future__ import annotations

import re
from pathlib import Path

URL = re.compile(r"(?i)\b(https?://)(?:[^\s/?#]+@)?([^\s?#]*)(\?[^\s'\"<>]*)?")


def without_secrets(text: str) -> str:
    """Text with the user:password and the query of every http(s) URL in it left out.

    A signed URL is a key to the slide for whoever reads it in a log.
    """
    return URL.sub(lambda url: url[1] + url[2] + ("?..." if url[3] else ""), text)


class AnlageError(Exception):
    """Root of everything anlage raises about the world outside the program.

    Attributes:
        path: The file, folder or row at fault; the text begins with it.
        message: What is wrong, and what to do. The text shows no secrets of URLs in either.
    """

    def __init__(self, path: str | Path, message: str) -> None:
        self.path = str(path)
        self.message = message
        super().__init__(without_secrets(f"{path}: {message}"))

    def __reduce__(self) -> tuple[type[AnlageError], tuple[str, str]]:
        """Survive pickling between processes, which calls the class with its arguments."""
        return type(self), (self.path, self.message)


class SlideError(AnlageError):
    """A slide cannot be opened or read."""


class ResolutionError(SlideError):
    """A slide does not say how large its pixels are, or says something absurd."""


class StainError(AnlageError):
    """Pixels do not tell of two stains: too little tissue, or only one colour."""


class CatalogueError(AnlageError):
    """A catalogue, or a table joined to it, is unusable."""


class RecipeError(AnlageError):
    """A recipe has an unknown, missing or contradictory key."""


class CheckpointError(AnlageError):
    """A checkpoint is damaged, or was made by another configuration."""


class EncoderError(AnlageError):
    """An encoder folder is incomplete, or is not what it says."""


class BagError(AnlageError):
    """A bag is damaged, or belongs to another encoder or grid."""


class TissueError(AnlageError):
    """A tissue method, its plug-in, or a mask from its user is unusable."""


class LabelledDataError(AnlageError):
    """Labelled tiles for a probe are unusable."""


class DeviceError(AnlageError):
    """The device asked for is not on this machine."""


class DistributedError(AnlageError):
    """Other processes of a job cannot be reached, or are lost."""


class TrainingError(AnlageError):
    """Training cannot go on."""
