# SPDX-License-Identifier: MIT
"""Attributes of sysfs."""

import os
from pathlib import Path


def read(attribute: Path) -> str:
    """Return an attribute's text; empty where it is not there or cannot be read."""
    try:
        return attribute.read_text().strip()
    except OSError:
        return ""


def write(attribute: Path, text: str) -> None:
    """Write an attribute with one ``write(2)``; errors are the kernel's own (OSError)."""
    fd = os.open(attribute, os.O_WRONLY)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)
