# SPDX-License-Identifier: MIT
"""What holds for every check: its id, its page, its tests, and that it touches nothing."""

import re
from pathlib import Path

import pytest

from upgrade.check import catalog
from upgrade.check.model import Check

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "checks"
CHECKS = catalog.checks()
TESTS = {path: path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)}

every_check = pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)


def test_ids_are_unique_and_families_in_order() -> None:
    ids = [check.id for check in CHECKS]
    assert len(set(ids)) == len(ids)
    order = list(catalog.FAMILIES)
    families = [order.index(check.family) for check in CHECKS]
    assert families == sorted(families)


@every_check
def test_an_id_is_well_formed(check: Check) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z0-9]+(-[a-z0-9]+)*", check.id)
    assert check.family in catalog.FAMILIES
    assert check.title
    assert not check.title.endswith(".")


@every_check
def test_a_check_has_a_page(check: Check) -> None:
    page = PAGES / f"{check.id}.md"
    assert page.is_file(), f"write docs/checks/{check.id}.md"
    lines = page.read_text().splitlines()
    assert lines[0] == f"# {check.id}"
    assert 8 <= len(lines) <= 80


@every_check
def test_a_check_is_tested(check: Check) -> None:
    assert any(check.id in text for text in TESTS.values())


def test_the_index_lists_every_page() -> None:
    index = (PAGES / "README.md").read_text()
    missing = [f"* [{c.id}]({c.id}.md): {c.title}" for c in CHECKS if f"({c.id}.md)" not in index]
    assert missing == []


def test_no_page_without_a_check() -> None:
    pages = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    assert pages - {check.id for check in CHECKS} == set()
