# SPDX-License-Identifier: MIT
"""Runs in the guest: both ends of a terminal."""

import pty

from condition import hold

hold(pty.openpty)
