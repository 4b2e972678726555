# SPDX-License-Identifier: MIT
"""A benchmark's result as JSON, text, plots and page."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest
from builders import benchmarks
from hypothesis import given
from hypothesis import strategies as st

from upgrade.bench import page, svg, table
from upgrade.bench.matrix import BY_NAME
from upgrade.bench.model import Cell, Result
from upgrade.bench.statistics import Spread
from upgrade.cli import main
from upgrade.report.model import Phase

VOID = {"meta", "br", "link", "img"}


class Checked(HTMLParser):
    """Makes sure that every element is closed, and collects what refers to other files."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.references += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_result_survives_json(tmp_path: Path) -> None:
    result = benchmarks.result()
    result.save(tmp_path / "deep" / "bench.json")
    assert Result.load(tmp_path / "deep" / "bench.json") == result


def test_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="schema version 99"):
        Result.from_json(benchmarks.result().to_json() | {"schema_version": 99})


def test_the_table_has_a_line_for_each_mode() -> None:
    text = table.render(benchmarks.result(memory=(64, 2048), containers=(1,)))
    for mode in benchmarks.MODES:
        assert text.count(f"  {BY_NAME[mode].title} ") == 2
    assert "copy to memory: 6.73 s + 2.14 s/GiB" in text
    assert "floor (bare kexec to the first userspace): 4.32 s" in text
    assert "failed" not in text


def test_a_failed_cell_is_told_with_its_reason() -> None:
    result = benchmarks.result(memory=(64,), containers=(1,), rounds=1)
    result.rows[0].cells[0] = Cell("in-place-lazy", 1, error="it burnt <down>")
    assert not result.good
    text = table.render(result)
    assert "1 container, 64 MiB, in-place-lazy, round 1: it burnt <down>" in text
    assert re.search(r"frames in place, lazy +- .* 0 of 1$", text, re.MULTILINE)
    html = page.render(result)
    assert "it burnt &lt;down&gt;" in html
    Checked(html)


def test_the_page_needs_nothing_else() -> None:
    html = page.render(benchmarks.result())
    assert Checked(html).references == []
    assert "@import" not in html
    assert "url(" not in html
    assert html.count("<svg") == 4


@pytest.mark.parametrize("rounds", [1, 2])
def test_the_page_is_whole_with_little_in_it(rounds: int) -> None:
    for result in (
        benchmarks.result(memory=(64,), containers=(1,), rounds=rounds),
        benchmarks.result(memory=(), containers=()),
    ):
        Checked(page.render(result))
        table.render(result)


def test_plots_are_xml() -> None:
    series = [svg.Series("a < b & c", "mode-copy", [(64, Spread(1.0, 0.5, 2.0, 3))])]
    bars = [svg.Bar('"quoted"', [Phase("dump", 1.0), Phase("unheard of", 2.0)], 3.0)]
    for text in (svg.lines(series, Spread(4, 4, 4, 1), "a & b"), svg.bars(bars, None, 'say "a"')):
        picture = ElementTree.fromstring(text)
        assert picture.attrib["aria-label"]
        assert "nan" not in text


@given(st.floats(1e-3, 1e6))
def test_ticks_are_few_and_reach_the_end(most: float) -> None:
    found = svg.ticks(most)
    assert found[0] == 0
    assert found[-1] >= most * (1 - 1e-6)
    assert found[-2] < most
    assert 3 <= len(found) <= 8


@given(st.lists(st.floats(0, 300), min_size=1, max_size=8))
def test_labels_keep_their_distance_and_their_order(wanted: list[float]) -> None:
    places = svg.spaced(sorted(wanted), 17, 320)
    assert places == sorted(places)
    assert places[-1] <= 320
    assert all(b - a >= 16.8 for a, b in pairwise(places))


def test_every_phase_has_its_group() -> None:
    from upgrade.report.model import PHASES

    known = {name for _, _, names in svg.GROUPS for name in names}
    assert set(PHASES) <= known
    phases = [Phase(name, 1.0) for name in PHASES]
    assert sum(seconds for _, _, seconds in svg.grouped(phases)) == len(PHASES)


def test_a_result_can_be_rendered_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measured, html = tmp_path / "bench.json", tmp_path / "again.html"
    benchmarks.result().save(measured)
    assert main(["bench", "--render", str(measured), "--output", str(html), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["rounds"] == 3
    Checked(html.read_text())


@pytest.mark.parametrize(
    ("words", "subject"),
    [
        (["--memory", "big"], "--memory"),
        (["--modes", "copy,teleport"], "--modes"),
        (["--memory", "1000000000"], "--memory"),
        (["--render", "/nowhere.json"], "/nowhere.json"),
    ],
)
def test_wrong_usage_is_named(words: list[str], subject: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--json", *words]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["subject"] == subject
