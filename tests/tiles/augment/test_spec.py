from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from anlage.tiles.augment.spec import MultiCropSpec


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"n_globals": 2}, "Extra inputs"),
        ({"global_px": 0}, "greater than or equal to 1"),
        ({"hflip_probability": 1.5}, "less than or equal to 1"),
        ({"jitter": (0.1, 0.1, 0.1, 0.6)}, "less than or equal to 0.5"),
        ({"global_scale": (0.5, 0.3)}, "global_scale needs 0 < least <= greatest"),
        ({"local_scale": (0.0, 0.3)}, "local_scale needs 0 < least <= greatest"),
        ({"global_scale": (0.5, 1.3)}, "areas of at most 1"),
        ({"blur_sigma": (0.0, 1.0)}, "blur_sigma needs"),
        ({"n_global": 1}, "one chance for each of the 1 global crops; got 2"),
        ({"solarize_probability": (0.1,)}, "solarize_probability needs one chance"),
        ({"blur_kernel_px": 8}, "needs to be odd"),
        ({"local_px": 4}, "under twice the smallest view"),
        ({"mode": "extended_context"}, "needs tiles of at least 252 px; got source_px=256"),
        ({"mode": "nearest"}, "resized"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, Any], complaint: str) -> None:
    if settings.get("mode") == "extended_context":
        settings = {**settings, "source_px": 251}
        complaint = complaint.replace("256", "251")
    with pytest.raises(ValidationError, match=complaint):
        MultiCropSpec(**settings)


def test_virchow2_s_sizes_are_accepted() -> None:
    spec = MultiCropSpec(source_px=392, mode="extended_context")
    assert spec.n_views == 10
    assert 1.12 < spec.largest_stretch < 1.13


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError):
        MultiCropSpec().n_local = 3
