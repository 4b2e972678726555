# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.request``."""

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upgrade.request import Request

names = st.lists(st.text(max_size=8), max_size=3).map(tuple)


@given(
    st.builds(
        Request,
        kernel=st.none() | st.text(max_size=8),
        initrd=st.none() | st.text(max_size=8),
        containers=names,
        cgroups=names,
        skip=names,
    )
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_request_is_handed_over(tmp_path: Path, wanted: Request) -> None:
    wanted.save(tmp_path / "request.json")
    assert Request.load(tmp_path / "request.json") == wanted


def test_a_request_of_the_version_before_is_taken_over(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text('{"kernel": "/boot/vmlinuz", "containers": ["web"], "all": true}')
    assert Request.load(file) == Request("/boot/vmlinuz", containers=("web",), all=True)
