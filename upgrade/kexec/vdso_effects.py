# SPDX-License-Identifier: MIT
"""What a changed vDSO means to the programs that call it, in words.

``severity`` orders the effects: ``none``; ``degraded``, the function still answers, but slower or less well;
``unsafe``, it is called where it no longer is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from upgrade.kexec.vdso import VdsoImage, Vdsos

Method = Literal["in-place", "proxy"]
Change = Literal["same", "moved", "resized", "added", "removed", "code-changed"]
Severity = Literal["none", "degraded", "unsafe"]

# ARCH_VDSO_SYMBOLS of criu/arch/x86/include/asm/vdso.h; the last since CRIU 4.0 (its commit 181583819).
CRIU_SYMBOLS = (
    "__vdso_clock_gettime",
    "__vdso_getcpu",
    "__vdso_gettimeofday",
    "__vdso_time",
    "__kernel_sigreturn",
    "__kernel_rt_sigreturn",
    "__vdso_clock_gettime64",
)
# sizeof(jmp) of insert_trampoline64() and insert_trampoline32() in criu/arch/x86/vdso-pie.c.
_TRAMPOLINE_BYTES = {64: 16, 32: 11}
_VSYSCALL = "__kernel_vsyscall"


@dataclass(frozen=True, slots=True)
class Effect:
    """What callers of one function meet."""

    severity: Severity
    text: str


_RESOLUTION = Effect(
    "degraded",
    "the old code reads an empty data page: the resolution of every fine clock comes out as 0 ns",
)
_ROBUST_UNLOCK = Effect(
    "degraded",
    "the old code runs outside of the range that the kernel watches: where a thread is killed between "
    "unlocking a robust futex and clearing its pending entry, the kernel may write to memory that is used "
    "otherwise, as kernels without this function do",
)
# What the code of an old vDSO does where CRIU left it in place and made its data pages empty memory.
_OLD_CODE = {
    "__vdso_clock_getres": _RESOLUTION,
    "__vdso_clock_getres_time64": _RESOLUTION,
    "__vdso_getrandom": Effect(
        "degraded",
        "the old code finds no ready generator in its empty data page and makes the system call: slower, "
        "correct",
    ),
    # fixup_vdso_exception() in arch/x86/entry/vdso/extable.c counts from the address of the new vDSO.
    "__vdso_sgx_enter_enclave": Effect(
        "degraded",
        "the old code enters enclaves, but the kernel no longer recognises a fault in it: the program gets a "
        "signal instead of an error code (enclaves themselves do not survive another kernel)",
    ),
    # do_fast_syscall_32() returns to the landing pad of the new vDSO, which pops what the old code pushed;
    # the three registers and their order are fixed (the comment in vdso32/system_call.S says for whom).
    _VSYSCALL: Effect(
        "none", "the old code makes system calls and the kernel returns into the new one: works"
    ),
    "__vdso_futex_robust_list64_try_unlock": _ROBUST_UNLOCK,
    "__vdso_futex_robust_list32_try_unlock": _ROBUST_UNLOCK,
}


def of_symbol(
    name: str, change: Change, criu_knows: bool, method: Method, old: VdsoImage, new: VdsoImage
) -> Effect:
    """Return what ``change`` means to restored programs that call ``name``."""
    if change == "added":
        return Effect("none", "unknown to the programs that run; those started afterwards use it")
    if method == "in-place":
        return _in_place(name, change, old, new)
    return _behind_proxy(name, criu_knows, old, new)


def _in_place(name: str, change: Change, old: VdsoImage, new: VdsoImage) -> Effect:
    if change == "same":
        return Effect("none", "the same code at the same address")
    if change in ("resized", "code-changed"):
        return Effect("none", "new code at the same address: works")
    before = old.symbols[name].value
    there = new.what_is_at(before) or "no function"
    after = f"moved to {new.symbols[name].value:#x}" if change == "moved" else "is gone"
    return Effect(
        "unsafe", f"is called at {before:#x}, but it {after}, and there is {there}: crash or nonsense"
    )


def _behind_proxy(name: str, criu_knows: bool, old: VdsoImage, new: VdsoImage) -> Effect:
    entry = old.symbols[name].value
    if criu_knows:
        if any(known in new.symbols for known in _known_at(old, entry)):
            return Effect("none", "CRIU writes a jump to the new code over it: works")
        # vdso_redirect_calls() adds the offset of a function that is not there: VDSO_BAD_ADDR, -1.
        return Effect("unsafe", "CRIU writes a jump over it, but the new vDSO has no such function: crash")
    for known in CRIU_SYMBOLS:
        patched = old.symbols.get(known)
        if patched and patched.value < entry < patched.value + _TRAMPOLINE_BYTES[old.bits]:
            return Effect("unsafe", f"the jump that CRIU writes over {known} reaches into it: crash")
    unknown = Effect("degraded", "the old code goes on with empty data pages; what it answers is not known")
    return _OLD_CODE.get(_full_name(name), unknown)


def _known_at(image: VdsoImage, entry: int) -> Iterator[str]:
    return (name for name in CRIU_SYMBOLS if name in image.symbols and image.symbols[name].value == entry)


def _full_name(name: str) -> str:
    """Return the name of a function that is exported under the C library's name, too (``clock_getres``)."""
    return name if name.startswith("__") else f"__vdso_{name}"


def of_method(bits: int, method: Method, reason: str) -> str:
    """Return the finding on how CRIU treats programs of ``bits`` bits."""
    if method == "in-place":
        return f"{bits}-bit programs: the new vDSO takes the old one's place ({reason})."
    return (
        f"{bits}-bit programs: the old vDSO stays, and CRIU writes jumps to the new one over the functions "
        f"that it knows ({reason}). This lasts until a program executes another."
    )


def of_callers(bits: int, name: str, effect: Effect) -> str:
    """Return the finding on the callers of a function."""
    return f"{bits}-bit programs that call {name}: {effect.text}."


def of_random_state(old: VdsoImage, new: VdsoImage, method: Method) -> Iterator[str]:
    """Yield the finding on the states that C libraries keep for ``getrandom()``, sized by the old vDSO."""
    if old.bits != 64 or "__vdso_getrandom" not in old.symbols or method == "proxy":
        return  # the old code goes with the old states
    before, after = old.random_state, new.random_state
    if before is None or after is None:
        if "__vdso_getrandom" in new.symbols:
            yield "The size of getrandom's state is not known for both kernels."
    elif before.size_bytes != after.size_bytes:
        # lib/vdso/getrandom.c: a state that would cross its page is refused before its size is looked at.
        worse = " or fails with EFAULT" if after.size_bytes > before.size_bytes else ""
        yield (
            f"getrandom's state has {after.size_bytes} bytes instead of {before.size_bytes}: threads that "
            f"have one already make the system call{worse}."
        )
    elif (before.mmap_prot, before.mmap_flags) != (after.mmap_prot, after.mmap_flags):
        yield "getrandom's states are to be mapped with other flags; those mapped already keep theirs."


def of_data(old: VdsoImage, new: VdsoImage) -> Iterator[str]:
    """Yield the finding on the size of the data area."""
    bits, before, after = old.bits, old.data.size_bytes, new.data.size_bytes
    if before is None or after is None:
        which = "running" if before is None else "new"
        yield f"The size of the {bits}-bit data area of the {which} kernel cannot be told; CRIU compares it."
    elif before != after:
        yield f"The {bits}-bit data area has {after // 4096} pages instead of {before // 4096}."


def of_threads_inside(old: VdsoImage, new: VdsoImage, method: Method) -> Iterator[str]:
    """Yield the findings on threads that are frozen while they execute the vDSO."""
    if method == "in-place" and old.code == new.code and old.bytes_of(*old.code) == new.bytes_of(*new.code):
        yield f"A {old.bits}-bit thread frozen inside the vDSO goes on in the same code: safe."
        return
    yield (
        f"A {old.bits}-bit thread frozen inside the vDSO is unsafe: it would go on in the middle of other "
        f"code, or in old code on empty data pages. Thaw and freeze again until none is inside."
    )
    if _VSYSCALL in old.symbols:
        # It waits behind "int $0x80" or at the landing pad, both in this function.
        safe = method == "proxy" or _same_function(_VSYSCALL, old, new)
        fate = "safe, its code stays" if safe else "unsafe, and it cannot be waited for"
        yield f"A 32-bit thread that waits in a system call is inside {_VSYSCALL}: {fate}."


def _same_function(name: str, old: VdsoImage, new: VdsoImage) -> bool:
    before, after = old.symbols[name], new.symbols.get(name)
    return before == after and old.bytes_of_symbol(before) == new.bytes_of_symbol(before)


def missing(bits: int, running: Vdsos, target: Vdsos) -> Iterator[str]:
    """Yield the finding where a kernel has no vDSO for programs of ``bits`` bits, or it is not known."""
    unknown = running.compat_unknown or target.compat_unknown
    if unknown:
        yield f"The {bits}-bit vDSOs were not compared: {unknown}."
    elif running.image(bits):
        yield f"{bits}-bit programs cannot be restored: the new kernel has no {bits}-bit vDSO."
