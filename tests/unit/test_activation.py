# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.services.activation``."""

import pytest

from upgrade.errors import Refusal
from upgrade.services import activation


def test_sockets_of_systemd_are_refused_and_other_triggers_are_not() -> None:
    activation.refuse("a.service", [])
    activation.refuse("a.service", ["a.timer", "a.path"])
    with pytest.raises(Refusal) as caught:
        activation.refuse("a.service", ["a.timer", "a.socket"])
    assert caught.value.subject == "a.service"
    assert "a.socket" in caught.value.message
    assert "a.socket" in str(caught.value.hint)
