# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.kexec.vdso``, ``vdso_code`` and ``vdso_find``."""

import bz2
import struct
from pathlib import Path

import pytest
from builders.kernel import PAGE, RELEASE, bzimage, vmlinux
from builders.vdso import FUNCTIONS_32, VdsoBuilder, getrandom_code, reads_page
from hypothesis import given, settings
from hypothesis import strategies as st

from upgrade.errors import Refusal, UpgradeError
from upgrade.host import Host
from upgrade.kexec import vdso_find
from upgrade.kexec.vdso import DataPage, VdsoSymbol, parse

COMPAT = VdsoBuilder(bits=32, functions=FUNCTIONS_32).build()
READS_SIX_PAGES = {at: reads_page(at, -6) for at in (0x880, 0x8A0, 0x8C0)}
# What ``struct vdso_image`` of 6.12 says after its pointer: size, alternatives, exceptions, data pages.
STRUCTURE_6_12 = (
    8192,
    0x1601,
    0xD2,
    0x170F,
    8,
    -2113924296,
    -16384,
    -16384,
    -12288,
    -8192,
    -4096,
    0,
    0,
    0,
    0,
)
STRUCTURE_7_2 = (8192, 0x16EE, 0xB6, 0x17D8, 8, -2109729656, 0, 0, 0, 0, 0x16D8, 0x16DD, 0x16E8, 0x16EC, 0)


def test_reads_symbols_versions_and_notes() -> None:
    image = parse(VdsoBuilder().build())
    assert image.bits == 64
    assert image.size_bytes == 8192
    assert image.symbols["__vdso_getrandom"] == VdsoSymbol("__vdso_getrandom", 0x940, 32, "LINUX_2.6")
    assert len(image.symbols) == 8
    assert image.build_id == bytes(range(20)).hex()
    assert image.release == RELEASE
    assert image.code == (0x800, 0xE00)


def test_reads_a_32_bit_image() -> None:
    image = parse(COMPAT)
    assert image.bits == 32
    assert image.symbols["__kernel_vsyscall"].value == 0x800
    assert image.build_id == bytes(range(20)).hex()
    assert image.random_state is None


def test_a_salt_of_another_kernel_is_no_release() -> None:
    assert parse(VdsoBuilder(version=(6, 18, 44), salt="6.1.102-1.amzn2023").build()).release == "6.18.44"


def test_names_what_is_at_an_address() -> None:
    image = parse(VdsoBuilder().build())
    assert image.what_is_at(0x840) == "__vdso_time"
    assert image.what_is_at(0x85F) == "__vdso_time+0x1f"
    assert image.what_is_at(0x860) is None


def test_places_patched_at_boot_read_as_zero() -> None:
    builder = VdsoBuilder(code={0x840: b"\x0f\x31\x90\x90\x90\xc3"}, alternatives=[(0x840, 5)])
    image = parse(builder.build())
    assert image.patched == (range(0x840, 0x845),)
    assert image.bytes_of(0x840, 0x847) == bytes(5) + b"\xc3\x90"
    assert image.bytes_of(0x844, 0x846) == b"\0\xc3"


@pytest.mark.parametrize("place", [(0x7FE, 5), (0xDFE, 5)])
def test_alternatives_outside_of_the_code_are_not_believed(place: tuple[int, int]) -> None:
    assert parse(VdsoBuilder(alternatives=[(0x840, 5), place]).build()).patched == ()


def test_data_area_from_the_code() -> None:
    data = parse(VdsoBuilder(code=READS_SIX_PAGES).build()).data
    assert (data.size_bytes, data.before_code, data.source) == (6 * PAGE, True, "code")
    assert data.pages[0] == DataPage("time", -6 * PAGE)
    assert data.pages[5] == DataPage("hvclock", -PAGE)


@pytest.mark.parametrize(
    "code",
    [
        {},
        {0x880: reads_page(0x880, -6), 0x8A0: reads_page(0x8A0, -6)},  # too few to be sure
        {at: reads_page(at, -17) for at in (0x880, 0x8A0, 0x8C0)},  # too far to be data
        {at: reads_page(at, 0) for at in (0x880, 0x8A0, 0x8C0)},  # the image itself
    ],
)
def test_no_data_area_is_guessed(code: dict[int, bytes]) -> None:
    data = parse(VdsoBuilder(code=code).build()).data
    assert (data.size_bytes, data.pages, data.source) == (None, (), "unknown")


def test_random_state() -> None:
    state = parse(VdsoBuilder(code={0x940: getrandom_code(144)}).build()).random_state
    assert state is not None
    assert (state.size_bytes, state.mmap_prot, state.mmap_flags) == (144, 3, 0x28)


def test_random_state_without_recognised_parameters() -> None:
    state = parse(VdsoBuilder(code={0x940: getrandom_code(144)[:7]}).build()).random_state
    assert state is not None
    assert (state.size_bytes, state.mmap_prot, state.mmap_flags) == (144, None, None)


def test_a_contradictory_random_state_is_unknown() -> None:
    code = {0x940: getrandom_code(144)[:7] + getrandom_code(256)[:7]}
    assert parse(VdsoBuilder(code=code).build()).random_state is None


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged"),
        (b"\x7fELF", "damaged"),
        (vmlinux([]), "no shared object for x86"),
        (VdsoBuilder(functions={"malloc": 0x800}).build(), "exports no vDSO function"),
        (VdsoBuilder().build()[:4096], "damaged"),
    ],
)
def test_refuses_what_is_no_vdso(content: bytes, reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        parse(content)


@given(content=st.binary(max_size=5000))
@settings(deadline=None)
def test_random_bytes_are_refused(content: bytes) -> None:
    with pytest.raises(UpgradeError):
        parse(content)
    with pytest.raises(UpgradeError):
        vdso_find.in_vmlinux(content, "6.12")


@given(st.lists(st.tuples(st.integers(0, 8191), st.integers(0, 255)), min_size=1, max_size=4))
@settings(deadline=None)
def test_a_damaged_image_is_read_or_refused(changes: list[tuple[int, int]]) -> None:
    content = bytearray(VdsoBuilder(code={0x940: getrandom_code(144)}, alternatives=[(0x840, 5)]).build())
    for at, value in changes:
        content[at] = value
    try:
        image = parse(bytes(content))
    except UpgradeError:
        return
    assert all(place.stop <= len(content) for place in image.patched)
    assert image.size_bytes == 8192


def test_finds_both_images_of_a_kernel_and_their_structures() -> None:
    kernel = vmlinux([VdsoBuilder().build(), COMPAT], structures=[STRUCTURE_6_12, STRUCTURE_6_12])
    vdsos = vdso_find.in_vmlinux(kernel, "6.12.107")
    assert vdsos.release == "6.12.107"
    assert vdsos.native.content == VdsoBuilder().build()
    assert vdsos.compat is not None
    assert vdsos.compat.content == COMPAT
    for image in (vdsos.native, vdsos.compat):
        assert (image.data.size_bytes, image.data.source) == (16384, "struct vdso_image")
        assert [page.name for page in image.data.pages] == ["time", "pvclock", "hvclock", "timens"]


def test_a_structure_tells_the_size() -> None:
    # The file ends in the third page; the structure says that the mapping has four.
    content = VdsoBuilder(pages=3).build()
    kernel = vmlinux([content + bytes(PAGE)], structures=[(4 * PAGE, *STRUCTURE_7_2[1:])])
    assert vdso_find.in_vmlinux(kernel, "7.2").native.size_bytes == 4 * PAGE
    assert vdso_find.in_vmlinux(vmlinux([content]), "7.2").native.size_bytes == 3 * PAGE


def test_a_structure_without_data_pages_leaves_them_to_the_code() -> None:
    native = VdsoBuilder(code=READS_SIX_PAGES).build()
    kernel = vmlinux([native, COMPAT], structures=[STRUCTURE_7_2, STRUCTURE_7_2])
    vdsos = vdso_find.in_vmlinux(kernel, "7.2.13")
    assert vdsos.native.data.size_bytes == 6 * PAGE
    assert vdsos.compat is not None
    assert vdsos.compat.data == vdsos.native.data


def test_other_elf_files_in_a_kernel_are_passed_over() -> None:
    purgatory = VdsoBuilder(functions={"purgatory_start": 0x800}).build()
    unaligned = vmlinux([purgatory, bytes(100) + COMPAT, VdsoBuilder().build()])
    vdsos = vdso_find.in_vmlinux(unaligned, "6.12")
    assert vdsos.native.symbols.keys() == parse(VdsoBuilder().build()).symbols.keys()
    assert vdsos.compat is None


def test_refuses_a_kernel_file_without_a_vdso(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(kernel_file(vmlinux([COMPAT])))
    with pytest.raises(Refusal, match="holds no 64-bit vDSO") as caught:
        vdso_find.in_kernel(path)
    assert caught.value.subject == str(path)


def kernel_file(kernel: bytes) -> bytes:
    return bzimage(bz2.compress(kernel) + struct.pack("<I", len(kernel)))


VVAR = "00100000-00104000 r--p 00000000 00:00 0      [vvar]\n"
VCLOCK = "00104000-00106000 r--p 00000000 00:00 0      [vvar_vclock]\n"
VDSO = "00106000-00108000 r-xp 00000000 00:00 0      [vdso]\n"


def running_host(tmp_path: Path, maps: str, content: bytes | None = None) -> Host:
    """Build the files that a 64-bit process sees of itself."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel").mkdir(parents=True)
    (tmp_path / "proc/sys/kernel/osrelease").write_text(RELEASE + "\n")
    (tmp_path / "proc/self/maps").write_text("00400000-00401000 r-xp 00000000 08:01 1 /bin/cat\n" + maps)
    with (tmp_path / "proc/self/mem").open("wb") as memory:
        memory.seek(0x106000)
        memory.write(VdsoBuilder().build() if content is None else content)
    return Host(tmp_path)


def install_kernel(host: Host, native: bytes) -> None:
    (host.root / "boot").mkdir()
    (host.root / f"boot/vmlinuz-{RELEASE}").write_bytes(kernel_file(vmlinux([native, COMPAT])))


def test_reads_the_running_vdso_from_memory(tmp_path: Path) -> None:
    vdsos = vdso_find.running(running_host(tmp_path, VVAR + VCLOCK + VDSO))
    assert vdsos.release == RELEASE
    assert vdsos.native.content == VdsoBuilder().build()
    assert (vdsos.native.data.size_bytes, vdsos.native.data.source) == (6 * PAGE, "maps")
    assert vdsos.native.data.before_code
    assert [page.name for page in vdsos.native.data.pages][2] == "rng"


def test_the_running_data_area_without_clock_pages(tmp_path: Path) -> None:
    maps = VVAR.replace("00100000-00104000", "00102000-00106000") + VDSO
    data = vdso_find.running(running_host(tmp_path, maps)).native.data
    assert data.size_bytes == 4 * PAGE
    assert data.pages[-1] == DataPage("timens", -PAGE)


def test_a_data_area_behind_the_code(tmp_path: Path) -> None:
    maps = VDSO + VVAR.replace("00100000-00104000", "00108000-00109000")
    data = vdso_find.running(running_host(tmp_path, maps)).native.data
    assert (data.size_bytes, data.before_code, data.pages) == (PAGE, False, ())


def test_the_running_32_bit_vdso_is_that_of_the_installed_kernel(tmp_path: Path) -> None:
    host = running_host(tmp_path, VVAR + VDSO)
    install_kernel(host, VdsoBuilder().build())
    vdsos = vdso_find.running(host)
    assert vdsos.compat is not None
    assert vdsos.compat.content == COMPAT
    assert vdsos.compat_unknown is None


def test_another_build_of_the_running_kernel_is_not_believed(tmp_path: Path) -> None:
    host = running_host(tmp_path, VVAR + VDSO)
    install_kernel(host, VdsoBuilder(build_id=bytes(20)).build())
    vdsos = vdso_find.running(host)
    assert vdsos.compat is None
    assert vdsos.compat_unknown is not None
    assert "another build" in vdsos.compat_unknown


def test_without_a_kernel_file_the_32_bit_vdso_is_unknown(tmp_path: Path) -> None:
    vdsos = vdso_find.running(running_host(tmp_path, VVAR + VDSO))
    assert vdsos.compat is None
    assert (
        vdsos.compat_unknown == f"the file of the running kernel is not installed (/boot/vmlinuz-{RELEASE})"
    )


def test_a_damaged_kernel_file_leaves_the_32_bit_vdso_unknown(tmp_path: Path) -> None:
    host = running_host(tmp_path, VVAR + VDSO)
    (tmp_path / "boot").mkdir()
    (tmp_path / f"boot/vmlinuz-{RELEASE}").write_bytes(b"")
    assert "too short" in str(vdso_find.running(host).compat_unknown)


def test_refuses_a_running_kernel_without_a_vdso(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="maps no vDSO"):
        vdso_find.running(running_host(tmp_path, VVAR))


def test_memory_that_cannot_be_read(tmp_path: Path) -> None:
    host = running_host(tmp_path, VDSO)
    (tmp_path / "proc/self/mem").unlink()
    with pytest.raises(UpgradeError, match="cannot read our own memory"):
        vdso_find.running(host)


def test_reads_the_vdso_of_this_machine() -> None:
    if "[vdso]" not in Path("/proc/self/maps").read_text():
        pytest.skip("this kernel maps no vDSO")
    native = vdso_find.running(Host()).native
    assert native.bits == 64
    assert "__vdso_clock_gettime" in native.symbols
    # What the code says of the data area must be what the kernel has mapped.
    assert parse(native.content).data.size_bytes == native.data.size_bytes
