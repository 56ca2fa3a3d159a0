"""How ``bench.json`` is kept, and that its page knows every group; the figures themselves are no test's affair."""

from __future__ import annotations

from pathlib import Path

from benchmarks.__main__ import GROUPS, merged
from benchmarks.figures import Figure, at_most, skipped

README = Path(__file__).parents[1] / "benchmarks" / "README.md"


def test_some_groups_change_their_own_figures_and_leave_the_others_where_they_are() -> None:
    kept = [Figure(name, 1.0, "s").to_json() for name in ("a", "b", "c")]
    found = merged(kept, [Figure("new", 2.0, "s"), at_most("b", 3.0, "s", 2.0), skipped("c", "s", "<= 1")])
    assert [(entry["name"], entry["value"], entry["holds"]) for entry in found] == [
        ("a", 1.0, None),
        ("b", 3.0, False),
        ("c", None, None),
        ("new", 2.0, None),
    ]
    assert found[0] == kept[0] and len(kept) == 3


def test_the_page_describes_every_group() -> None:
    described = [line.split("`")[1] for line in README.read_text().splitlines() if line.startswith("| `")]
    assert described == list(GROUPS)
