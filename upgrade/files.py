# SPDX-License-Identifier: MIT
"""Writing a file whole or not at all, and putting the old one back if something after it fails."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def write(file: Path, text: str, mode: int = 0o644) -> None:
    """Write a file so that it holds either the old text or the new one, whatever happens."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Hidden, and not named *.cfg or *.conf: nobody reads it if we are killed here.
    temporary = file.with_name(f".{file.name}.seamless-upgrade")
    try:
        with open(temporary, "w") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    _sync(file.parent)


def read(file: Path) -> str | None:
    """Return a file's text; None if there is no such file."""
    try:
        return file.read_text()
    except FileNotFoundError:
        return None


@contextmanager
def replaced(file: Path, text: str | None) -> Iterator[None]:
    """Write a file, or remove it (None). If the block fails the old one is back."""
    before = read(file)
    mode = file.stat().st_mode & 0o7777 if before is not None else 0o644
    _put(file, text, mode)
    try:
        yield
    except BaseException:
        _put(file, before, mode)
        raise


def _put(file: Path, text: str | None, mode: int) -> None:
    if text is not None:
        write(file, text, mode)
    elif file.exists():
        file.unlink()
        _sync(file.parent)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
