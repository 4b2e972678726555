# SPDX-License-Identifier: MIT
"""``seamless-upgrade restore`` with options; without any, ``upgrade.cli`` goes the short way."""

import argparse

from upgrade.restore.main import main as restore


def main(_options: argparse.Namespace) -> int:
    """Restore."""
    return restore()
