# SPDX-License-Identifier: MIT
"""What another kernel's vDSO does to programs that go on running.

CRIU decides at restore between two methods (``vdso_proxify()`` in ``criu/pie/parasite-vdso.c``). *In place*:
the new vDSO is moved to the old one's address. *Proxy*: the old one stays, and jumps to the new one are
written over the functions that CRIU knows, seven names in all. Programs call every function at the address
that they looked up when they started. What this means for each function is in ``vdso_effects.py``.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from upgrade.kexec import vdso_effects
from upgrade.kexec.vdso import DataPage, VdsoImage, Vdsos, VdsoSymbol
from upgrade.kexec.vdso_effects import CRIU_SYMBOLS, Change, Effect, Method, Severity

WIDTHS = (64, 32)


@dataclass(frozen=True, slots=True)
class Decision:
    """How CRIU will treat programs of ``bits`` bits, and why. Unsure: part of the reason is not known."""

    bits: int
    method: Method
    reason: str
    sure: bool


@dataclass(frozen=True, slots=True)
class SymbolChange:
    """What becomes of one exported function. Addresses are distances from the image's start, in bytes."""

    name: str
    bits: int
    change: Change
    criu_knows: bool
    severity: Severity
    effect: str
    running: int | None
    target: int | None


@dataclass(frozen=True, slots=True)
class PageChange:
    """A page of the data area in both kernels; offsets from the image's start, in bytes."""

    name: str
    bits: int
    change: Change
    running: int | None
    target: int | None


@dataclass(frozen=True, slots=True)
class VdsoComparison:
    """The answer of :func:`compare`. ``method`` is that of 64-bit programs, ``decisions`` has all."""

    method: Method
    decisions: tuple[Decision, ...]
    running: Vdsos
    target: Vdsos
    symbols: tuple[SymbolChange, ...]
    data_pages: tuple[PageChange, ...]
    findings: tuple[str, ...]

    def unsafe_symbols(self) -> tuple[SymbolChange, ...]:
        """Return the functions that programs would call wrongly: where other code is now, or nothing."""
        return tuple(symbol for symbol in self.symbols if symbol.severity == "unsafe")

    def degraded_symbols(self) -> tuple[SymbolChange, ...]:
        """Return the functions that still answer, but slower or less well."""
        return tuple(symbol for symbol in self.symbols if symbol.severity == "degraded")

    def to_json(self) -> dict[str, object]:
        """Return it for ``--json`` answers and the session record."""
        return {
            "method": self.method,
            "methods": [
                {"bits": d.bits, "method": d.method, "reason": d.reason, "sure": d.sure}
                for d in self.decisions
            ],
            "running": _json_of_vdsos(self.running),
            "target": _json_of_vdsos(self.target),
            "symbols": [
                {
                    "name": s.name,
                    "bits": s.bits,
                    "change": s.change,
                    "criu_knows": s.criu_knows,
                    "severity": s.severity,
                    "effect": s.effect,
                    "running": s.running,
                    "target": s.target,
                }
                for s in self.symbols
            ],
            "data_pages": [
                {"name": p.name, "bits": p.bits, "change": p.change, "running": p.running, "target": p.target}
                for p in self.data_pages
            ],
            "findings": list(self.findings),
        }


def compare(running: Vdsos, target: Vdsos) -> VdsoComparison:
    """Compare the vDSOs of the kernel that runs with those of the kernel to be entered."""
    decisions: list[Decision] = []
    symbols: list[SymbolChange] = []
    pages: list[PageChange] = []
    findings: list[str] = []
    for bits in WIDTHS:
        old, new = running.image(bits), target.image(bits)
        if old is None or new is None:
            findings += vdso_effects.missing(bits, running, target)
            continue
        decision = _decide(old, new)
        changes = tuple(_symbols(old, new, decision.method))
        decisions.append(decision)
        symbols += changes
        pages += _pages(old, new)
        findings += _findings(old, new, decision, changes)
    return VdsoComparison(
        decisions[0].method, tuple(decisions), running, target, tuple(symbols), tuple(pages), tuple(findings)
    )


def _decide(old: VdsoImage, new: VdsoImage) -> Decision:
    """Decide as ``blobs_matches()`` of CRIU 4.2 does, in its order."""
    bits = old.bits
    if old.size_bytes != new.size_bytes:
        return Decision(bits, "proxy", f"its size differs: {old.size_bytes} and {new.size_bytes} bytes", True)
    for name in CRIU_SYMBOLS:
        before, after = _offset(old, name), _offset(new, name)
        if before != after:
            return Decision(bits, "proxy", f"{name} moved from {_hex(before)} to {_hex(after)}", True)
    sizes = (old.data.size_bytes, new.data.size_bytes)
    if None in sizes:
        reason = "its size and CRIU's functions are the same; the size of its data area is not known"
        return Decision(bits, "in-place", reason, False)
    if sizes[0] != sizes[1]:
        return Decision(bits, "proxy", f"its data area differs: {sizes[0]} and {sizes[1]} bytes", True)
    if old.data.before_code != new.data.before_code:
        return Decision(bits, "proxy", "its data area is on the other side of the code", True)
    return Decision(bits, "in-place", "its size, CRIU's functions and its data area are the same", True)


def _offset(image: VdsoImage, name: str) -> int | None:
    symbol = image.symbols.get(name)
    # To CRIU a function at address 0 is one that is not there (parse_elf_symbols()).
    return symbol.value or None if symbol else None


def _hex(offset: int | None) -> str:
    return "nowhere" if offset is None else f"{offset:#x}"


def _symbols(old: VdsoImage, new: VdsoImage, method: Method) -> Iterator[SymbolChange]:
    for name in sorted(old.symbols.keys() | new.symbols.keys()):
        before, after = old.symbols.get(name), new.symbols.get(name)
        change = _change(old, new, before, after)
        knows = _criu_knows(old if before else new, name)
        effect = vdso_effects.of_symbol(name, change, knows, method, old, new)
        yield SymbolChange(
            name,
            old.bits,
            change,
            knows,
            effect.severity,
            effect.text,
            before.value if before else None,
            after.value if after else None,
        )


def _change(old: VdsoImage, new: VdsoImage, before: VdsoSymbol | None, after: VdsoSymbol | None) -> Change:
    if before is None or after is None:
        return "removed" if before else "added"
    if before.value != after.value:
        return "moved"
    if before.size != after.size:
        return "resized"
    return "same" if old.bytes_of_symbol(before) == new.bytes_of_symbol(after) else "code-changed"


def _criu_knows(image: VdsoImage, name: str) -> bool:
    """Tell whether CRIU looks after a function, under this name or as another name for the same address."""
    value = image.symbols[name].value
    return any(_offset(image, known) == value for known in CRIU_SYMBOLS)


def _pages(old: VdsoImage, new: VdsoImage) -> Iterator[PageChange]:
    before, after = _by_name(old.data.pages), _by_name(new.data.pages)
    if not before or not after:
        return  # nothing to compare with: the findings say so
    for name in [*before, *(name for name in after if name not in before)]:
        was, now = before.get(name), after.get(name)
        change: Change = "same" if was == now else "moved"
        if was is None or now is None:
            change = "removed" if now is None else "added"
        yield PageChange(name, old.bits, change, was, now)


def _by_name(pages: tuple[DataPage, ...]) -> dict[str, int]:
    return {page.name: page.offset for page in pages}


def _findings(
    old: VdsoImage, new: VdsoImage, decision: Decision, changes: tuple[SymbolChange, ...]
) -> Iterator[str]:
    yield vdso_effects.of_method(decision.bits, decision.method, decision.reason)
    seen: set[tuple[int | None, str]] = set()
    for symbol in changes:
        # Of several names for one function, one finding; the names of the C library sort behind "__".
        key = (symbol.running, symbol.change)
        if symbol.severity != "none" and key not in seen:
            seen.add(key)
            yield vdso_effects.of_callers(symbol.bits, symbol.name, Effect(symbol.severity, symbol.effect))
    yield from vdso_effects.of_random_state(old, new, decision.method)
    yield from vdso_effects.of_data(old, new)
    yield from vdso_effects.of_threads_inside(old, new, decision.method)


def _json_of_vdsos(vdsos: Vdsos) -> dict[str, object]:
    return {
        "release": vdsos.release,
        "vdso64": _json_of_image(vdsos.native),
        "vdso32": _json_of_image(vdsos.compat) if vdsos.compat else None,
        "vdso32_unknown": vdsos.compat_unknown,
    }


def _json_of_image(image: VdsoImage) -> dict[str, object]:
    state = image.random_state
    return {
        "size_bytes": image.size_bytes,
        "build_id": image.build_id,
        "release": image.release,
        "data_bytes": image.data.size_bytes,
        "data_source": image.data.source,
        "getrandom_state_bytes": state.size_bytes if state else None,
        "getrandom_mmap_prot": state.mmap_prot if state else None,
        "getrandom_mmap_flags": state.mmap_flags if state else None,
    }
