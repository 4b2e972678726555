# SPDX-License-Identifier: MIT
"""The report as text: the golden form of an example, and what must be in the others."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from test_report import example, reports

from upgrade.report.model import Outcome, Phase, Report
from upgrade.report.text import render, seconds, size

GOLDEN = """\
Upgraded  6.12.48+deb13-cloud-amd64 → 6.12.57+deb13-cloud-amd64  on host7
1 of 1 container restored, away for 6.25 s ± 4.0 ms
256 MiB of 256 MiB copied
2026-11-22 10:35:12 to 2026-11-22 10:35:40 UTC, CRIU 4.1.1
id 20261122-103512
kernel taint was 0, is 512
live patches were kpatch_cve_2026_1, are none

Downtime
  freeze                             21 ms    0 %  ▏
  dump                              0.12 s    2 %  █
  capture                           0.4 ms    0 %   ▏
  quiesce                           0.31 s    5 %   ██
  last look                         2.0 ms    0 %     ▏
  jump                               50 ms    1 %     █
  kernel boot to first userspace    3.10 s   50 %      ████████████████████████
  userspace to restore              2.20 s   35 %                              █████████████████
  restore                           0.45 s    7 %                                               ███
  all of it                         6.25 s

Containers
  NAME   ENGINE  OUTCOME     AWAY  TASKS  THREADS   MEMORY   COPIED
  cache  runc    restored  6.25 s      1        5  256 MiB  256 MiB

vDSO
  in-place: CRIU sees no difference: programs call the new vDSO at the addresses they know.
  FUNCTION          BITS  CHANGE
  __vdso_getrandom    64  moved, unsafe
  __vdso_getrandom: called at its old address, where other code is
  unchanged: 2 other functions
  - the state of getrandom() has the same size in both kernels
  cache: a program that goes on calling __vdso_getrandom may crash or compute nonsense
  cache: 1 thread inside the vDSO: thawed and frozen again 1 time until none was inside

Warnings
  - the firewall was restored without counters
"""


def test_the_example_looks_like_this() -> None:
    assert render(example()) == GOLDEN


def test_colour_changes_nothing_but_colours() -> None:
    coloured = render(example(Outcome.DEGRADED), colour=True)
    assert "\033[" in coloured
    assert re.sub(r"\033\[[0-9;]*m", "", coloured) == render(example(Outcome.DEGRADED))
    assert "\033" not in render(example(Outcome.DEGRADED))


def test_a_degraded_upgrade_says_what_to_do() -> None:
    text = render(example(Outcome.DEGRADED))
    assert text.startswith("Upgraded, degraded")
    assert "1 of 3 containers restored" in text
    assert "web: the checksum of an image was wrong" in text
    advice = text.split("What to do next\n")[1]
    assert "web was started from cold and has lost its memory" in advice
    assert "podman start mail" in advice
    assert "journalctl" in advice


def test_a_failed_upgrade_says_why() -> None:
    report = replace(example(Outcome.FAILED), containers=(), phases=(), vdso={}, reason="kexec was refused")
    text = render(report)
    assert text.startswith("Not upgraded")
    assert "kexec was refused" in text
    assert "seamless-upgrade check" in text
    assert "vDSO" not in text
    assert "Downtime" not in text


def test_vdsos_without_a_difference_take_little_room() -> None:
    same = [s for s in example().vdso["symbols"] if s["change"] == "same"]
    text = render(replace(example(), vdso={**example().vdso, "symbols": same, "findings": []}))
    assert "all functions are the same" in text
    assert "FUNCTION" not in text


def test_bars_lie_end_to_end() -> None:
    phases = (Phase("freeze", 1.0), Phase("dump", 1.0), Phase("capture", 2.0))
    text = render(replace(example(), phases=phases))
    bars = [line[line.index("%") + 3 :] for line in text.splitlines() if "█" in line]
    assert bars == ["█" * 12, " " * 12 + "█" * 12, " " * 24 + "█" * 24]


@given(reports)
def test_every_report_can_be_read(report: Report) -> None:
    text = render(report)
    assert text.endswith("\n")
    assert not any(line != line.rstrip(" ") for line in text.split("\n") if "█" in line)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_no_line_is_wider_than_a_terminal(outcome: Outcome) -> None:
    long = replace(example(outcome), warnings=("far too much to say " * 20,))
    assert max(map(len, render(long).splitlines())) <= 100


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 ms"), (0.0004, "0.4 ms"), (0.021, "21 ms"), (0.1, "0.10 s"), (6.254, "6.25 s"), (120.4, "120 s")],
)
def test_durations(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (4096, "4.0 KiB"),
        (1023 * 1024**2, "1023 MiB"),
        (64 * 1024**3, "64 GiB"),
        (1 << 60, "1048576 TiB"),
    ],
)
def test_sizes(value: int, text: str) -> None:
    assert size(value) == text
