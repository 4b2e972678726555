# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.check.text``: what people read."""

from builders.checks import result, saying

from upgrade.check import text
from upgrade.check.model import failed, passed, skipped, warned
from upgrade.report.text import WIDTH

PASS = passed("loaded kernel", "0", "/sys/kernel/kexec_loaded")
WARN = warned("eth0", "no shutdown", source="/sys/bus", reason="it may hang", remedy="unbind it")
FAIL = failed(
    "redis", "io_uring", source="/proc/5/fd/3", reason="CRIU cannot dump it", remedy="switch it off"
)
SKIP = skipped("the containers", "none runs", reason="cannot be looked at without it")


def test_findings_are_grouped_by_family_in_its_order() -> None:
    results = [
        result(FAIL, "containers.uring"),
        result(PASS, "kexec.loaded"),
        result(PASS, "containers.found"),
        result(WARN, "devices.shutdown"),
    ]
    assert text.render(results).splitlines() == [
        "Entering a kernel",
        "  pass  loaded kernel: 0  [kexec.loaded]",
        "",
        "Devices",
        "  warn  eth0: no shutdown  [devices.shutdown]",
        "        it may hang",
        "        remedy: unbind it",
        "        seen in /sys/bus",
        "",
        "Containers",
        "  fail  redis: io_uring  [containers.uring]",
        "        CRIU cannot dump it",
        "        remedy: switch it off",
        "        seen in /proc/5/fd/3",
        "  pass  loaded kernel: 0  [containers.found]",
        "",
        "1 failed, 1 warned, 2 passed",
    ]


def test_what_many_checks_say_is_said_once() -> None:
    results = [result(SKIP, f"containers.{name}") for name in ("found", "pids", "tty")]
    assert text.render(results).splitlines() == [
        "Containers",
        "  skip  the containers: none runs",
        "        cannot be looked at without it",
        "        [containers.found, containers.pids, containers.tty]",
        "",
        "3 not known",
    ]


def test_colours_only_where_they_are_wanted() -> None:
    results = [result(each) for each in (PASS, WARN, FAIL, SKIP)]
    assert "\x1b" not in text.render(results)
    shown = text.render(results, colour=True)
    for word, code in (("pass", "32;1"), ("warn", "33;1"), ("fail", "31;1"), ("skip", "36")):
        assert f"\x1b[{code}m{word}\x1b[0m" in shown


def test_long_reasons_are_wrapped_and_paths_stay_whole() -> None:
    path = "/sys/devices/" + "x" * 120
    long = warned("eth0", "y", source=path, reason="a word " * 60, remedy="kexec -u")
    lines = text.render([result(long)]).splitlines()
    assert f"        {path}" in lines
    assert "        remedy: kexec -u" in lines
    others = [line for line in lines if path not in line]
    assert max(map(len, others)) <= WIDTH
    assert sum(line.startswith("        a word") for line in lines) > 2


def test_nothing_ran() -> None:
    assert text.render([]) == "no check ran"


def test_the_catalogue() -> None:
    listed = text.catalogue([saying(id="kexec.loaded"), saying(id="host.time")]).splitlines()
    assert [line.split(maxsplit=1) for line in listed] == [
        ["kexec.loaded", "all is well"],
        ["host.time", "all is well"],
    ]
