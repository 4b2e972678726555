# SPDX-License-Identifier: MIT
"""The report's JSON form: what the model writes fits the schema, and what does not fit is told."""

import json
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upgrade.report.model import PHASES, ContainerOutcome, ContainerReport, Outcome, Phase, Report

Json = dict[str, Any]
SCHEMA = json.loads((files("upgrade.report") / "schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def vdso_example() -> Json:
    """Return a comparison as ``upgrade.kexec`` makes it, shortened."""

    def symbol(name: str, change: str, severity: str, effect: str) -> Json:
        return {
            "name": name,
            "bits": 64,
            "change": change,
            "criu_knows": severity == "none",
            "severity": severity,
            "effect": effect,
            "running": 0xC00,
            "target": 0xC40,
        }

    return {
        "method": "in-place",
        "methods": [{"bits": 64, "method": "in-place", "reason": "nothing differs", "sure": True}],
        "running": {"release": "6.12.48"},
        "target": {"release": "6.12.57"},
        "symbols": [
            symbol("__vdso_gettimeofday", "same", "none", ""),
            symbol("__vdso_getcpu", "same", "none", ""),
            symbol("__vdso_getrandom", "moved", "unsafe", "called at its old address, where other code is"),
        ],
        "data_pages": [{"name": "vvar", "bits": 64, "change": "same", "running": -16384, "target": -16384}],
        "findings": ["the state of getrandom() has the same size in both kernels"],
    }


def example(outcome: Outcome = Outcome.UPGRADED) -> Report:
    """Return a report with something in every member."""
    containers = [
        ContainerReport(
            name="cache",
            engine="runc",
            outcome=ContainerOutcome.RESTORED,
            downtime_seconds=6.25,
            pages_total=65536,
            pages_copied=65536,
            bytes_copied=65536 * 4096,
            tasks=1,
            threads=5,
            threads_in_vdso=1,
            vdso_action="thawed and frozen again 1 time until none was inside",
            dump={
                "freezing_time": 1200,
                "frozen_time": 117000,
                "pages_scanned": 70000,
                "pages_written": 65536,
            },
            restore={"forking_time": 2500, "restore_time": 240000, "pages_restored": 65536},
        )
    ]
    if outcome is Outcome.DEGRADED:
        containers += [
            ContainerReport(
                "web", "podman", ContainerOutcome.COLD_STARTED, "the checksum of an image was wrong"
            ),
            ContainerReport("mail", "podman", ContainerOutcome.LOST, "podman start failed: no such image"),
        ]
    durations = (0.021, 0.117, 0.0004, 0.31, 0.002, 0.05, 3.1, 2.2, 0.449)
    return Report(
        id="20261122-103512",
        outcome=outcome,
        host="host7",
        kernel_from="6.12.48+deb13-cloud-amd64",
        kernel_to="6.12.57+deb13-cloud-amd64",
        command_line_from="root=/dev/vda",
        command_line_to="root=/dev/vda memmap=256M!4G",
        taint_before=0,
        taint_after=512,
        criu_version="4.1.1",
        started_at="2026-11-22T10:35:12.250+00:00",
        finished_at="2026-11-22T10:35:40Z",
        downtime_seconds=sum(durations),
        downtime_error_seconds=0.004,
        reason=None if outcome is Outcome.UPGRADED else "2 of 3 containers did not come back",
        livepatches_before=("kpatch_cve_2026_1",),
        phases=tuple(Phase(name, s) for name, s in zip(PHASES, durations, strict=True)),
        pages_total=65536,
        pages_copied=65536,
        bytes_copied=65536 * 4096,
        containers=tuple(containers),
        vdso=vdso_example(),
        warnings=("the firewall was restored without counters",),
    )


@pytest.mark.parametrize("outcome", list(Outcome))
def test_examples_fit_the_schema_and_come_back(outcome: Outcome) -> None:
    report = example(outcome)
    data = json.loads(json.dumps(report.to_json()))
    VALIDATOR.validate(data)
    assert Report.from_json(data) == report


def test_the_schema_is_one_and_names_every_member() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    data = example().to_json()
    assert set(SCHEMA["properties"]) == set(SCHEMA["required"]) == set(data)
    container = SCHEMA["$defs"]["container"]
    assert set(container["properties"]) == set(container["required"]) == set(data["containers"][0])
    assert tuple(SCHEMA["$defs"]["phase"]["properties"]["name"]["enum"]) == PHASES


def test_an_upgrade_without_a_vdso_comparison_fits() -> None:
    VALIDATOR.validate(example().to_json() | {"vdso": {}})


MUTATIONS: dict[str, Callable[[Json], object]] = {
    "another version": lambda d: d.update(schema_version=2),
    "unknown outcome": lambda d: d.update(outcome="splendid"),
    "unknown member": lambda d: d.update(colour="blue"),
    "missing member": lambda d: d.pop("criu_version"),
    "local time": lambda d: d.update(started_at="2026-11-22T10:35:12+01:00"),
    "negative downtime": lambda d: d.update(downtime_seconds=-1),
    "downtime as text": lambda d: d.update(downtime_seconds="6 s"),
    "unknown phase": lambda d: d["phases"][0].update(name="coffee"),
    "phase in nanoseconds": lambda d: d["phases"][0].update(seconds_ns=3),
    "degraded without a reason": lambda d: d.update(outcome="degraded", reason=None),
    "upgraded with a lost container": lambda d: d["containers"][0].update(outcome="lost", reason="gone"),
    "restored without a downtime": lambda d: d["containers"][0].update(downtime_seconds=None),
    "half a page": lambda d: d.update(pages_total=0.5),
    "statistics as text": lambda d: d["containers"][0]["dump"].update(frozen_time="1 s"),
    "vdso without findings": lambda d: d["vdso"].pop("findings"),
    "a 16-bit vdso": lambda d: d["vdso"]["symbols"][0].update(bits=16),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_what_does_not_fit_is_refused(name: str) -> None:
    data = example().to_json()
    MUTATIONS[name](data)
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(data)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"schema_version": 2}, ValueError),
        ({"outcome": "splendid"}, ValueError),
        ({"colour": "blue"}, TypeError),
        ({"containers": [{"name": "x"}]}, ValueError),
    ],
)
def test_the_model_refuses_what_it_does_not_know(change: Json, error: type[Exception]) -> None:
    with pytest.raises(error):
        Report.from_json(example().to_json() | change)


texts = st.text(min_size=1, max_size=20)
counts = st.integers(0, 2**63)
durations = st.floats(0, 1e6, allow_nan=False)
stats = st.dictionaries(st.sampled_from(["freezing_time", "frozen_time", "pages_written"]), counts)
containers = st.builds(
    ContainerReport,
    name=texts,
    engine=texts,
    outcome=st.just(ContainerOutcome.RESTORED),
    reason=st.none() | texts,
    downtime_seconds=durations,
    pages_total=counts,
    threads=counts,
    vdso_action=st.none() | texts,
    dump=stats,
    restore=stats,
)
times = st.datetimes().map(lambda t: t.isoformat() + "Z")
reports = st.builds(
    Report,
    id=texts,
    outcome=st.sampled_from(Outcome),
    reason=texts,
    host=texts,
    taint_before=counts,
    taint_after=counts,
    started_at=times,
    finished_at=times,
    downtime_seconds=durations,
    downtime_error_seconds=durations,
    restore_mode=st.sampled_from(["copy", "eager", "lazy"]),
    gathering=st.sampled_from(
        [
            {},
            {
                "pages": 10,
                "pages_outside_before": 9,
                "pages_outside_after": 1,
                "seconds": 1.5,
                "longest_step_seconds": 0.1,
                "refaults": 3,
                "dropped_cache": False,
                "left": {"locked in memory": 1},
            },
        ]
    ),
    phases=st.lists(st.builds(Phase, st.sampled_from(PHASES), durations)).map(tuple),
    pages_total=counts,
    pages_copied=counts,
    bytes_copied=counts,
    containers=st.lists(containers, max_size=3).map(tuple),
    vdso=st.just({}) | st.builds(vdso_example),
    schema_version=st.just(1),
)


@given(reports)
def test_every_report_fits_and_comes_back(report: Report) -> None:
    data = json.loads(json.dumps(report.to_json()))
    VALIDATOR.validate(data)
    assert Report.from_json(data) == report


def test_the_restore_path_imports_nothing_heavy() -> None:
    code = (
        "import sys, upgrade.report.model, upgrade.report.store, upgrade.report.history\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules} & {'google', 'jsonschema', 'psutil',"
        " 'jinja2', 'typing_extensions', 'subprocess', 'argparse', 'tempfile', 'datetime', 'textwrap'}))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == []
