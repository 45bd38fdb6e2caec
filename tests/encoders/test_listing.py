"""The list of encoders, and the table of the documentation, which is made from it."""

from __future__ import annotations

from pathlib import Path

from anlage.encoders.listing import encoder_rows, markdown_table
from anlage.encoders.presets import PRESETS
from anlage.models.vit import VisionTransformer
from anlage.models.without_weights import without_weights

PAGE = Path(__file__).parents[2] / "docs" / "how_to" / "use_published_encoders.md"
ASKED = (
    "uni uni2-h virchow virchow2 prov-gigapath kaiko-vits16 kaiko-vits8 kaiko-vitb16 kaiko-vitb8 "
    "kaiko-vitl14 midnight-12k h-optimus-0 h-optimus-1 h0-mini phikon phikon-v2 hibou-b hibou-l "
    "lunit-vits8 lunit-vits16 conch-v1.5 genbio-pathfm openmidnight dinov2-s dinov2-b dinov2-l "
    "dinov2-g"
)
MILLIONS = {  # parameters, in millions, as the cards and registries of others count them
    "uni": 303.4, "uni2-h": 681.4, "virchow": 631.2, "virchow2": 631.2, "prov-gigapath": 1130,
    "h0-mini": 85.7, "phikon": 85.8, "phikon-v2": 303.4, "hibou-b": 85.7, "hibou-l": 303.7,
    "lunit-vits8": 21.7, "midnight-12k": 1140,
}  # fmt: skip


def test_every_name_is_there_once_with_the_same_facts():
    rows = list(encoder_rows())
    named = [row["name"] for row in rows]
    assert named == ["anlage-tiny", *ASKED.split(), "prov-gigapath-slide"]
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert rows[0]["width"] == 192
    assert [row["takes"] for row in rows] == ["tiles"] * 28 + ["bags of prov-gigapath"]
    unverified = {row["name"] for row in rows if not row["verified"]}
    assert unverified == {"h0-mini", "hibou-l", "conch-v1.5", "genbio-pathfm"}


def test_parameters_are_as_many_as_others_count():
    for name, millions in MILLIONS.items():
        preset = PRESETS[name]
        with without_weights():
            model = VisionTransformer(image_px=preset.grids_px[0], **preset.architecture)
        found = sum(parameter.numel() for parameter in model.parameters()) / 1e6
        assert abs(found / millions - 1) < 0.005, (name, found)


def test_the_table_of_the_documentation_is_that_of_the_code():
    assert markdown_table() in PAGE.read_text(encoding="utf-8")
