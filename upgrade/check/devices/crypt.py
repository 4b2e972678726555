# SPDX-License-Identifier: MIT
"""Does an encrypted disk open without somebody who types a passphrase?

The key is lost with this kernel: the new one's initrd has to open the disk again, before anything can be restored.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from upgrade.check.blocks import Layer
from upgrade.host import Host

CRYPTTAB = "/etc/crypttab"
_NO_KEY = ("", "none", "-")
_KEY_WORDS = ("rd.luks.key=", "luks.key=", "cryptkey=")
_CLEVIS = ("/usr/bin/clevis-luks-unlock", "/usr/lib/dracut/modules.d/60clevis")

# docs/on-disk-format-luks2 of cryptsetup: a binary header, then JSON up to the size that the header names
_MAGIC, _JSON_AT, _MOST_BYTES = b"LUKS\xba\xbe", 4096, 4 << 20

# What has to be plugged in, reached or unchanged. Tokens are named as in LUKS2 headers.
_TOKENS = {
    "systemd-tpm2": "the TPM",
    "clevis": "Clevis",
    "systemd-fido2": "a FIDO2 token",
    "systemd-pkcs11": "a smart card",
}
_OPTIONS = {
    "tpm2-device": "the TPM",
    "fido2-device": "a FIDO2 token",
    "pkcs11-uri": "a smart card",
    "keyscript": "a key script",
}


@dataclass(frozen=True, slots=True)
class Opening:
    """How a disk is opened."""

    key: str = ""
    """Where the key lies, if it needs nothing else."""
    helper: str = ""
    """What gives the key, which may not do so."""
    asks: bool = False
    """Somebody has to type; not known if nothing of this is set."""


def opening(host: Host, layer: Layer) -> Opening:
    """Return how an encrypted device is opened at boot.

    :raises PermissionError: without root, if only the disk itself can tell
    """
    word = next((word for word in host.command_line().split() if word.startswith(_KEY_WORDS)), "")
    if word:
        return Opening(key=f"{word.partition('=')[0]}= on the command line")
    line = _line(host, layer.detail)
    if line is not None:
        key, options = line
        helpers = [text for name, text in _OPTIONS.items() if name in options]
        if helpers:
            return Opening(helper=helpers[0])
        if key not in _NO_KEY:
            return Opening(key=key)
    tokens = _tokens(host.path(f"/dev/{layer.below[0]}")) if layer.below else ()
    helpers = [_TOKENS[each] for each in tokens or () if each in _TOKENS]
    if not helpers and any(host.exists(path) for path in _CLEVIS):
        helpers = ["Clevis"]
    if helpers:
        return Opening(helper=helpers[0])
    return Opening(asks=line is not None and tokens is not None)


def _line(host: Host, name: str) -> tuple[str, set[str]] | None:
    """Return key and names of options of a device in crypttab."""
    for line in host.read_or(CRYPTTAB, "").splitlines():
        words = line.split()
        if words and words[0] == name:
            options = words[3].split(",") if len(words) > 3 else []
            return words[2] if len(words) > 2 else "", {each.partition("=")[0] for each in options}
    return None


def _tokens(device: Path) -> tuple[str, ...] | None:
    """Return the kinds of tokens in a LUKS header; None if it is none."""
    try:
        with device.open("rb") as file:
            header = file.read(16)
            if not header.startswith(_MAGIC):
                return None
            if header[6:8] != b"\0\2":
                return ()  # LUKS1 has no tokens
            size = int.from_bytes(header[8:16], "big")
            file.seek(_JSON_AT)
            area = file.read(max(0, min(size, _MOST_BYTES) - _JSON_AT))
            tokens = json.loads(area.rstrip(b"\0")).get("tokens", {})
            return tuple(str(each.get("type", "")) for each in tokens.values())
    except FileNotFoundError:
        return None
    except ValueError:
        return None
