# SPDX-License-Identifier: MIT
"""What the new kernel's vDSO does to programs that go on running."""

from collections.abc import Iterator

from upgrade.check.model import Finding, failed, passed, warned
from upgrade.check.situation import Situation
from upgrade.check.target.use import Use, named
from upgrade.kexec import vdso_effects
from upgrade.kexec.vdso_compare import SymbolChange, VdsoComparison

ENCLAVES = "/dev/sgx_enclave"
_REMEDY = "choose another kernel, or restart these programs afterwards"


def vdso(situation: Situation) -> Iterator[Finding]:
    """Look at every function, and at both widths of programs."""
    narrow = Use(situation).narrow
    found = situation.comparison
    widths = [decision.bits for decision in found.decisions if decision.bits == 64 or narrow]
    bad = [each for each in _distinct(found) if each.bits in widths and _may_be_called(situation, each)]
    for change in bad:
        yield _of_function(change, str(situation.target.path))
    if narrow:
        bad_widths = [d.bits for d in found.decisions]
        if 32 not in bad_widths:
            text = " ".join(vdso_effects.missing(32, found.running, found.target)) or "not compared"
            make = failed if found.running.compat and not found.target.compat else warned
            yield make(
                "32-bit vDSO", text, reason=f"{named(narrow)} runs programs of 32 bits", remedy=_REMEDY
            )
    old, new = found.running.native, found.target.native
    for text in vdso_effects.of_random_state(old, new, found.method):
        yield warned(
            "__vdso_getrandom (64 bits)",
            text.rstrip("."),
            source=str(situation.target.path),
            reason="threads that have drawn random numbers keep a state of the old size",
            remedy=_REMEDY,
        )
    for decision in found.decisions:
        if decision.bits in widths and not decision.sure:
            yield warned(
                f"{decision.bits}-bit vDSO",
                decision.reason,
                source=str(situation.target.path),
                reason="how CRIU will treat programs is not known for certain",
                remedy="rehearse it: seamless-upgrade rehearse",
            )
    if not any(each.severity == "unsafe" for each in bad):
        how = {
            "in-place": "the new one takes the old one's place",
            "proxy": "calls are handed on to the new one",
        }
        yield passed("vDSO", f"{how[found.method]}: {found.decisions[0].reason}", str(situation.target.path))


def _distinct(found: VdsoComparison) -> Iterator[SymbolChange]:
    """Yield what changes for the worse, a function with several names once."""
    seen: set[tuple[int, int | None]] = set()
    for change in found.symbols:
        if change.severity != "none" and (change.bits, change.running) not in seen:
            seen.add((change.bits, change.running))
            yield change


def _may_be_called(situation: Situation, change: SymbolChange) -> bool:
    return change.name != "__vdso_sgx_enter_enclave" or situation.host.exists(ENCLAVES)


def _of_function(change: SymbolChange, source: str) -> Finding:
    subject, seen = f"{change.name} ({change.bits} bits)", f"{change.change}: {change.effect}"
    if change.severity == "unsafe":
        reason = "programs that call it crash or compute nonsense after the upgrade"
        return failed(subject, seen, source=source, reason=reason, remedy=_REMEDY)
    return warned(
        subject,
        seen,
        source=source,
        reason="programs that were restored go on so until they are started anew",
        remedy="none needed; restart what depends on it when it suits",
    )
