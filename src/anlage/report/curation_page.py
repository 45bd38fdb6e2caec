"""One static page of what a curated pool holds: each cluster in numbers and thumbnails."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from anlage import __version__
from anlage.bags.summary import encoder_of
from anlage.curation.contact_sheet import ClusterLook, contact_sheet
from anlage.curation.curate import Curation
from anlage.files import write_text_whole
from anlage.report.pictures import jpeg_uri

TEMPLATE = "curation.html.jinja"


def write_curation_page(
    made: Curation, looks: Sequence[ClusterLook], page: Path, *, n_clusters: int
) -> Path:
    """Write one HTML file that opens offline and fetches nothing.

    Args:
        made: The curated pool.
        looks: Clusters to show.
        page: The file.
        n_clusters: Clusters there are, of which ``looks`` may be the largest.

    Returns:
        ``page``.
    """
    environment = Environment(
        loader=PackageLoader("anlage.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(TEMPLATE).render(
        made=made,
        encoder=encoder_of(made.pool.made.encoder_name, made.pool.made.encoder_fingerprint),
        tile_um=made.pool.made.tile_px * made.pool.made.mpp,
        looks=[(look, jpeg_uri(contact_sheet(look.thumbnails))) for look in looks],
        n_clusters=n_clusters,
        n_slides=len(set(made.pool.slide_N[made.chosen_M].tolist())),
        version=__version__,
        written=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
    )
    write_text_whole(page, text)
    return page
