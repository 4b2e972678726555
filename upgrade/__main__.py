# SPDX-License-Identifier: MIT
"""``python -m upgrade``."""

from upgrade.cli import entry_point

entry_point()
