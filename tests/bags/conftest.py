"""A bucket to put bags into."""

from __future__ import annotations

from local_bucket import bucket, endpoint  # noqa: F401 - fixtures
