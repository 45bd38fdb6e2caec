"""What the names of TCGA's slides say: the patient, and the hospital that gave the tissue."""

from __future__ import annotations

import re

from anlage.errors import CatalogueError

BARCODE = re.compile(r"(?i)TCGA-([0-9A-Z]{2})-[0-9A-Z]{4}(?![0-9A-Z])")
EXAMPLE = "TCGA-02-0001-01Z-00-DX1"


def tcga_patient(slide_id: str) -> str:
    """The patient of a slide: ``TCGA-02-0001`` of ``TCGA-02-0001-01Z-00-DX1.UUID``.

    Raises:
        CatalogueError: If the name does not begin with a TCGA barcode.
    """
    return _barcode(slide_id)[0].upper()


def tcga_site(slide_id: str) -> str:
    """The tissue source site: ``02`` of the same, the second field of the barcode.

    Raises:
        CatalogueError: If the name does not begin with a TCGA barcode.
    """
    return _barcode(slide_id)[1].upper()


def _barcode(slide_id: str) -> re.Match[str]:
    found = BARCODE.match(slide_id)
    if found is None:
        msg = f"needs a TCGA barcode, such as {EXAMPLE}. Give patients and sites as columns."
        raise CatalogueError(slide_id, msg)
    return found
