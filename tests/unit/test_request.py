# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.request``."""

from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from upgrade.request import Request

names = st.lists(st.text(max_size=8), max_size=3).map(tuple)


@given(st.builds(Request, initrd=st.none() | st.text(max_size=8), containers=names, cgroups=names))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_every_request_is_handed_over(tmp_path: Path, wanted: Request) -> None:
    wanted.save(tmp_path / "request.json")
    assert Request.load(tmp_path / "request.json") == wanted
