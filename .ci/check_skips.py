"""Fail if a test was skipped for a reason that tests/allowed_skips.txt does not hold."""

import sys
from pathlib import Path
from xml.etree import ElementTree as ET


def skipped(results: Path) -> list[tuple[str, str]]:
    """Name and reason of every skipped test of a JUnit file."""
    found = []
    for case in ET.parse(results).iter("testcase"):  # noqa: S314 - made by the line before
        reason = case.find("skipped")
        if reason is not None:
            name = f"{case.get('classname')}::{case.get('name')}"
            found.append((name, reason.get("message", "")))
    return found


def main() -> int:
    """Print what was skipped without leave; 1 if there was any, 0 otherwise."""
    text = (Path(__file__).parents[1] / "tests" / "allowed_skips.txt").read_text()
    allowed = [line for line in text.splitlines() if line and not line.startswith("#")]
    wrong = [
        (name, reason)
        for results in sys.argv[1:]
        for name, reason in skipped(Path(results))
        if not any(reason.startswith(a) for a in allowed)
    ]
    for name, reason in wrong:
        print(f"skipped without leave: {name}: {reason}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
