# SPDX-License-Identifier: MIT
"""What the page server's unit runs (``seamless-upgrade-pages.service``)."""

import argparse

from upgrade import paths
from upgrade.restore import pageserver


def main(_options: argparse.Namespace) -> int:
    """Bring the containers' memory, on demand and in the background."""
    return pageserver.main(paths.PAGES)
