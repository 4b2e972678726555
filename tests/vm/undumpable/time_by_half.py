# SPDX-License-Identifier: MIT
"""Runs in the guest: a task whose children get another time namespace."""

from condition import call, hold

CHECK = "containers.namespaces"
CLONE_NEWTIME = 0x80
hold(lambda: call("unshare", CLONE_NEWTIME))
