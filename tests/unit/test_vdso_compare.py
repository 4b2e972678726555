# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.kexec.vdso_compare`` and ``vdso_effects``."""

import json
from dataclasses import replace

import pytest
from builders.vdso import FUNCTIONS_32, FUNCTIONS_64, VdsoBuilder, getrandom_code
from hypothesis import given, settings
from hypothesis import strategies as st

from upgrade.kexec.vdso import UNKNOWN_AREA, DataArea, VdsoImage, Vdsos, name_pages, parse
from upgrade.kexec.vdso_compare import SymbolChange, VdsoComparison, compare
from upgrade.kexec.vdso_effects import CRIU_SYMBOLS

FOUR_PAGES = DataArea(4 * 4096, True, name_pages(4 * 4096, split=False), "maps")
SIX_PAGES = DataArea(6 * 4096, True, name_pages(6 * 4096, split=True), "code")
COMPAT = VdsoBuilder(bits=32, functions=FUNCTIONS_32)


def native(**changes: int) -> VdsoImage:
    """Return a 64-bit image with some functions elsewhere; at 0 they are missing."""
    functions = {name: value for name, value in {**FUNCTIONS_64, **changes}.items() if value}
    return parse(VdsoBuilder(functions=functions).build(), data=FOUR_PAGES)


def beside(data: DataArea) -> VdsoImage:
    """Return the same image beside another data area."""
    return replace(native(), data=data)


def vdsos(image: VdsoImage, compat: VdsoImage | None = None, unknown: str | None = None) -> Vdsos:
    return Vdsos("6.12", image, compat, unknown)


def compared(old: VdsoImage, new: VdsoImage) -> VdsoComparison:
    return compare(vdsos(old), vdsos(new))


def compared_32(old: VdsoBuilder, new: VdsoBuilder) -> VdsoComparison:
    images = (parse(builder.build(), data=FOUR_PAGES) for builder in (old, new))
    return compare(*(vdsos(native(), image) for image in images))


def symbol(comparison: VdsoComparison, name: str, bits: int = 64) -> SymbolChange:
    (found,) = (s for s in comparison.symbols if (s.name, s.bits) == (name, bits))
    return found


def test_equal_images_change_in_place_and_break_nothing() -> None:
    comparison = compared(native(), native())
    assert comparison.method == "in-place"
    assert {s.change for s in comparison.symbols} == {"same"}
    assert {p.change for p in comparison.data_pages} == {"same"}
    assert comparison.unsafe_symbols() == comparison.degraded_symbols() == ()
    assert any("goes on in the same code: safe" in finding for finding in comparison.findings)


def test_every_exported_symbol_of_either_is_listed() -> None:
    comparison = compared(native(), native(__vdso_getrandom=0, __vdso_new=0x960))
    assert {s.name for s in comparison.symbols} == {*FUNCTIONS_64, "__vdso_new"}
    assert symbol(comparison, "__vdso_new").change == "added"
    assert symbol(comparison, "__vdso_new").running is None


def test_an_unlisted_function_that_moved_in_place_is_unsafe() -> None:
    # CRIU sees a match, and programs call what is now the middle of another function.
    new = native(__vdso_getrandom=0x980, __vdso_new=0x930)
    comparison = compared(native(), new)
    assert comparison.method == "in-place"
    (unsafe,) = comparison.unsafe_symbols()
    assert (unsafe.name, unsafe.change, unsafe.criu_knows) == ("__vdso_getrandom", "moved", False)
    assert "called at 0x940, but it moved to 0x980, and there is __vdso_new+0x10: crash" in unsafe.effect
    assert any(f.startswith("64-bit programs that call __vdso_getrandom: ") for f in comparison.findings)


def test_an_unlisted_function_that_is_gone_in_place_is_unsafe() -> None:
    (unsafe,) = compared(native(), native(__vdso_getrandom=0)).unsafe_symbols()
    assert (unsafe.change, unsafe.target) == ("removed", None)
    assert "it is gone, and there is no function" in unsafe.effect


def test_two_names_of_a_function_give_one_finding() -> None:
    comparison = compared(native(), native(__vdso_clock_getres=0x980, clock_getres=0x980))
    assert {s.name for s in comparison.unsafe_symbols()} == {"__vdso_clock_getres", "clock_getres"}
    assert len([f for f in comparison.findings if "clock_getres" in f]) == 1


@pytest.mark.parametrize("name", [name for name in CRIU_SYMBOLS if name in FUNCTIONS_64])
def test_a_listed_function_that_moved_makes_a_proxy(name: str) -> None:
    comparison = compared(native(), native(**{name: 0x980}))
    assert comparison.method == "proxy"
    assert comparison.decisions[0].reason == f"{name} moved from {FUNCTIONS_64[name]:#x} to 0x980"
    moved = symbol(comparison, name)
    assert (moved.criu_knows, moved.severity) == (True, "none")


def test_a_listed_function_at_address_zero_is_none_to_criu() -> None:
    at_zero = parse(VdsoBuilder(functions={**FUNCTIONS_64, "__vdso_time": 0}).build(), data=FOUR_PAGES)
    comparison = compared(at_zero, native(__vdso_time=0))
    assert comparison.method == "in-place"
    assert [s.name for s in comparison.unsafe_symbols()] == ["__vdso_time"]


def test_another_size_makes_a_proxy() -> None:
    comparison = compared(native(), parse(VdsoBuilder(pages=3).build(), data=FOUR_PAGES))
    assert comparison.method == "proxy"
    assert comparison.decisions[0].reason == "its size differs: 8192 and 12288 bytes"


def test_another_data_area_makes_a_proxy() -> None:
    comparison = compared(native(), beside(SIX_PAGES))
    assert comparison.method == "proxy"
    changes = {p.name: p.change for p in comparison.data_pages}
    assert changes == {
        "time": "moved",
        "pvclock": "moved",
        "hvclock": "moved",
        "timens": "moved",
        "rng": "added",
        "arch": "added",
    }
    assert "The 64-bit data area has 6 pages instead of 4." in comparison.findings
    back = {p.name: p.change for p in compared(beside(SIX_PAGES), native()).data_pages}
    assert (back["rng"], back["time"]) == ("removed", "moved")


def test_a_data_area_on_the_other_side_makes_a_proxy() -> None:
    behind = DataArea(4 * 4096, False, (), "maps")
    assert compared(beside(behind), native()).method == "proxy"


def test_an_unknown_data_area_is_said_to_be_unknown() -> None:
    comparison = compared(native(), beside(UNKNOWN_AREA))
    assert (comparison.method, comparison.decisions[0].sure) == ("in-place", False)
    assert comparison.data_pages == ()
    assert any("of the new kernel cannot be told" in finding for finding in comparison.findings)
    assert compared(native(), native()).decisions[0].sure


def test_what_old_code_does_behind_a_proxy() -> None:
    comparison = compared(native(), native(__vdso_time=0x980))
    assert comparison.unsafe_symbols() == ()
    degraded = {s.name: s.effect for s in comparison.degraded_symbols()}
    assert degraded.keys() == {"__vdso_clock_getres", "clock_getres", "__vdso_getrandom"}
    assert "0 ns" in degraded["clock_getres"]
    assert "makes the system call" in degraded["__vdso_getrandom"]
    # Another name for a function that CRIU patches is patched with it.
    assert symbol(comparison, "clock_gettime").severity == "none"


def test_a_function_nobody_has_heard_of_behind_a_proxy() -> None:
    comparison = compared(native(__vdso_new=0x980), native(__vdso_time=0x9A0))
    assert "is not known" in symbol(comparison, "__vdso_new").effect


def test_a_listed_function_that_is_gone_behind_a_proxy_is_unsafe() -> None:
    (unsafe,) = compared(native(), native(__vdso_time=0)).unsafe_symbols()
    assert unsafe.name == "__vdso_time"
    assert "has no such function: crash" in unsafe.effect


def test_a_jump_that_reaches_into_the_next_function_is_unsafe() -> None:
    old = native(__vdso_new=FUNCTIONS_64["__vdso_time"] + 15)
    (unsafe,) = compared(old, native(__vdso_getcpu=0x980)).unsafe_symbols()
    assert unsafe.name == "__vdso_new"
    behind = native(__vdso_new=FUNCTIONS_64["__vdso_time"] + 16)
    assert compared(behind, native(__vdso_getcpu=0x980)).unsafe_symbols() == ()


def test_resized_and_changed_code_in_place() -> None:
    resized = parse(VdsoBuilder(sizes={"__vdso_time": 48}).build(), data=FOUR_PAGES)
    assert symbol(compared(native(), resized), "__vdso_time").change == "resized"
    changed = parse(VdsoBuilder(code={0x850: b"\xcc"}).build(), data=FOUR_PAGES)
    comparison = compared(native(), changed)
    assert [s.name for s in comparison.symbols if s.change == "code-changed"] == ["__vdso_time"]
    assert comparison.unsafe_symbols() == ()
    assert any("frozen inside the vDSO is unsafe" in finding for finding in comparison.findings)


def test_what_a_kernel_patches_at_boot_is_no_change() -> None:
    file = VdsoBuilder(code={0x850: b"\x0f\x31\x90\x90\x90"}, alternatives=[(0x850, 5)])
    memory = replace(file, code={0x850: b"\x0f\x01\xf9\x0f\x1f"})
    comparison = compared(*(parse(builder.build(), data=FOUR_PAGES) for builder in (memory, file)))
    assert {s.change for s in comparison.symbols} == {"same"}


def random_states(before: bytes, after: bytes) -> list[str]:
    images = (parse(VdsoBuilder(code={0x940: code}).build(), data=FOUR_PAGES) for code in (before, after))
    return [
        finding for finding in compared(*images).findings if finding.startswith(("getrandom", "The size"))
    ]


def test_a_random_state_of_another_size() -> None:
    (larger,) = random_states(getrandom_code(144), getrandom_code(256))
    assert larger.startswith("getrandom's state has 256 bytes instead of 144")
    assert "EFAULT" in larger
    (smaller,) = random_states(getrandom_code(256), getrandom_code(144))
    assert "EFAULT" not in smaller


def test_a_random_state_with_other_flags_or_unknown() -> None:
    assert random_states(getrandom_code(144), getrandom_code(144)) == []
    (flags,) = random_states(getrandom_code(144), getrandom_code(144, flags=8))
    assert "other flags" in flags
    (unknown,) = random_states(getrandom_code(144), b"")
    assert "not known" in unknown


def test_32_bit_programs_wait_inside_the_vdso() -> None:
    functions = {**FUNCTIONS_32, "__kernel_vsyscall": 0x900}
    moved = replace(COMPAT, functions=functions, code={0x900: b"\xcd\x80\xc3"})
    comparison = compared_32(COMPAT, moved)
    assert [d.method for d in comparison.decisions] == ["in-place", "in-place"]
    assert [s.name for s in comparison.unsafe_symbols()] == ["__kernel_vsyscall"]
    assert any("inside __kernel_vsyscall: unsafe" in finding for finding in comparison.findings)
    # Where only other functions changed, those that wait are safe.
    elsewhere = compared_32(COMPAT, replace(COMPAT, code={0x8C0: b"\xc3"}))
    assert any("inside __kernel_vsyscall: safe" in finding for finding in elsewhere.findings)


def test_32_bit_programs_behind_a_proxy_make_system_calls_with_the_old_code() -> None:
    moved = replace(
        COMPAT, functions={**FUNCTIONS_32, "__kernel_sigreturn": 0x900, "__kernel_vsyscall": 0x940}
    )
    comparison = compared_32(COMPAT, moved)
    assert [d.method for d in comparison.decisions] == ["in-place", "proxy"]
    assert comparison.method == "in-place"
    assert symbol(comparison, "__kernel_vsyscall", 32).severity == "none"
    assert any("inside __kernel_vsyscall: safe" in finding for finding in comparison.findings)


def test_unknown_and_missing_32_bit_images() -> None:
    image = parse(COMPAT.build(), data=FOUR_PAGES)
    unknown = compare(vdsos(native(), None, "no file"), vdsos(native(), image))
    assert "The 32-bit vDSOs were not compared: no file." in unknown.findings
    gone = compare(vdsos(native(), image), vdsos(native()))
    assert "32-bit programs cannot be restored: the new kernel has no 32-bit vDSO." in gone.findings
    assert not any("32-bit" in finding for finding in compared(native(), native()).findings)


def test_to_json_is_json_and_complete() -> None:
    comparison = compared(native(), native(__vdso_time=0x980))
    answer = json.loads(json.dumps(comparison.to_json()))
    assert answer["method"] == "proxy"
    assert answer["running"]["vdso64"]["size_bytes"] == 8192
    assert answer["running"]["vdso64"]["build_id"] == bytes(range(20)).hex()
    assert answer["target"]["vdso32"] is None
    assert [s["name"] for s in answer["symbols"]] == [s.name for s in comparison.symbols]
    assert set(answer["symbols"][0]) == {
        "name",
        "bits",
        "change",
        "criu_knows",
        "severity",
        "effect",
        "running",
        "target",
    }
    assert answer["findings"] == list(comparison.findings)


PLACES = st.sampled_from(range(0x800, 0xDE0, 32))


@given(moves=st.dictionaries(st.sampled_from(sorted(FUNCTIONS_64)), PLACES, max_size=3))
@settings(deadline=None)
def test_in_place_never_leaves_a_moved_function_unsaid(moves: dict[str, int]) -> None:
    comparison = compared(native(), native(**moves))
    moved = {name for name, place in moves.items() if FUNCTIONS_64[name] != place}
    assert {s.name for s in comparison.symbols if s.change == "moved"} == moved
    if moved & set(CRIU_SYMBOLS):
        assert comparison.method == "proxy"
        assert comparison.unsafe_symbols() == ()
    else:
        assert comparison.method == "in-place"
        assert {s.name for s in comparison.unsafe_symbols()} == moved
