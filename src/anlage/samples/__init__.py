"""Where the bundled samples lie: a few MB of real slides and tiles (see ATTRIBUTION.md)."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path


def samples_folder() -> Path:
    """The folder that holds every sample, its attribution and the licence texts."""
    return Path(str(files("anlage.samples")))


def slides_folder() -> Path:
    """19 small real slides: 18 windows at 1 mpp (one a case) and one Aperio file at 0.499 mpp."""
    return samples_folder() / "slides"


def slides_labels() -> Path:
    """Their labels: slide_id, patient_id, stain, tissue, diagnosis, group, split (CSV)."""
    return samples_folder() / "slides.csv"


def organ_tiles() -> Path:
    """The organ task, 5 classes: file, label, case, split, mpp, size_px of 128 px tiles (CSV)."""
    return samples_folder() / "tiles" / "organ5.csv"
