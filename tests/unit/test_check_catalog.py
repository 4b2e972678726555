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
# The programs of tests/vm say which check finds them; test_check_containers.py runs them here.
FILES = [*Path(__file__).parent.glob("test_*.py"), *ROOT.glob("tests/vm/un*able/*.py")]
TESTS = {path: path.read_text() for path in FILES if path != Path(__file__)}

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
    noun = check.id.partition(".")[2]
    for path, text in TESTS.items():
        # a family's own tests may leave its name out
        if check.id in text or (
            path.name.startswith(f"test_check_{check.family}") and re.search(rf'["\s.]{noun}\b', text)
        ):
            return
    pytest.fail(f"no test names {check.id}")


def test_the_index_lists_every_page() -> None:
    index = (PAGES / "README.md").read_text()
    missing = [f"* [{c.id}]({c.id}.md): {c.title}" for c in CHECKS if f"({c.id}.md)" not in index]
    assert missing == []


def test_no_page_without_a_check() -> None:
    pages = {path.stem for path in PAGES.glob("*.*.md")}
    assert pages - {check.id for check in CHECKS} == set()
