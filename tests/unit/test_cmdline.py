# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.kexec.cmdline``."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upgrade.errors import ExitStatus, Refusal, UsageError
from upgrade.kexec import cmdline
from upgrade.kexec.cmdline import RDINIT, SESSION, base, build, old_rdinit, session_of

# arch/x86/kernel/kexec-bzimage64.c, bzImage64_load(): the line with its NUL, and room for elfcorehdr= even where no
# crash kernel is loaded, must fit into the header's cmdline_size (arch/x86/boot/header.S: COMMAND_LINE_SIZE - 1).
MAX_ELFCOREHDR_STR_LEN = 30
KERNEL_TAKES = 2048 - 1 - MAX_ELFCOREHDR_STR_LEN - 1

words = st.lists(
    st.sampled_from(
        [
            "quiet",
            "root=/dev/vda1",
            "memmap=1G!4G",
            "BOOT_IMAGE=/vmlinuz",
            "initrd=\\initrd",
            "rdinit=/sbin/x",
        ]
    )
    | st.text(alphabet="abcdefgh=,.!$", min_size=1, max_size=12),
    max_size=8,
)


@given(running=words, append=words.map(lambda w: [x for x in w if not x.startswith("rdinit=")]))
def test_upgrades_can_follow_each_other_for_ever(running: list[str], append: list[str]) -> None:
    first = build(" ".join(running), " ".join(append), "one")
    second = build(first, "", "two")
    third = build(second, "", "three")
    assert third == second.replace("=two", "=three")
    assert (session_of(first), session_of(second)) == ("one", "two")
    assert first.split().count(f"rdinit={RDINIT}") == second.split().count(f"rdinit={RDINIT}") == 1


@given(running=words, append=words.map(lambda w: [x for x in w if not x.startswith("rdinit=")]))
def test_nothing_else_is_lost_or_moved(running: list[str], append: list[str]) -> None:
    kept = [w for w in running if not w.startswith(("BOOT_IMAGE=", "initrd="))]
    assert base(" ".join(running)).split() == kept
    assert build(" ".join(running), " ".join(append), "x").split()[:-2] == [*kept, *append]


def test_what_the_session_sets_itself_is_refused() -> None:
    for word in ("rdinit=/bin/sh", f"rdinit={RDINIT}", f"{SESSION}=x"):
        with pytest.raises(UsageError) as caught:
            build("quiet", f"debug {word}", "s")
        assert (caught.value.subject, caught.value.status) == (word, ExitStatus.USAGE)
    assert "initrd_of_mine=1" in build("quiet", "initrd_of_mine=1", "s")


@pytest.mark.parametrize("letter", ["x", "ä"])
@pytest.mark.parametrize("beyond", [0, 1, 2, 30, 31, 100])
def test_a_line_is_refused_as_soon_as_the_kernel_would_refuse_it(beyond: int, letter: str) -> None:
    fixed = len(build("a=", "", "session"))
    room = KERNEL_TAKES + beyond - fixed
    size = len(letter.encode())
    running = "a=" + letter * (room // size) + "x" * (room % size)
    if beyond == 0:
        assert len(build(running, "", "session").encode()) == KERNEL_TAKES
        return
    with pytest.raises(Refusal) as caught:
        build(running, "", "session")
    assert caught.value.status == ExitStatus.REFUSED
    assert str(KERNEL_TAKES) in caught.value.message


@pytest.mark.parametrize(
    ("running", "append"),
    [("quiet -- single", ""), ("quiet -- single", "debug"), ("quiet --", "")],
)
def test_what_follows_two_dashes_is_for_init(running: str, append: str) -> None:
    """The kernel reads nothing behind them (kernel/params.c, parse_args()): ``rdinit=`` has to come before."""
    line = build(running, append, "s").split()
    own = [f"{SESSION}=s", f"rdinit={RDINIT}"]
    kernel, init = line[: line.index("--")], line[line.index("--") + 1 :]
    assert kernel == ["quiet", *(["debug"] if "debug" in append else []), *own]
    assert init == [w for w in ["single"] if w in running + append]


def test_arguments_for_init_cannot_be_appended() -> None:
    with pytest.raises(UsageError) as caught:
        build("quiet", "debug -- single", "s")
    assert caught.value.subject == "--"


def test_three_dashes_are_just_a_word() -> None:
    assert build("quiet --- splash", "", "s") == f"quiet --- splash {SESSION}=s rdinit={RDINIT}"


@pytest.mark.parametrize(
    ("line", "session", "rdinit"),
    [
        ("", None, "/init"),
        ("quiet rdinit=/sbin/own", None, "/sbin/own"),
        ("rdinit=/a rdinit=/b", None, "/b"),
        (f"quiet {SESSION}=abc rdinit={RDINIT}", "abc", "/init"),
        (f"rdinit=/a {SESSION}=old {SESSION}=new rdinit={RDINIT}", "new", "/a"),
        (f"x{SESSION}=abc", None, "/init"),
        (f"{SESSION}", None, "/init"),
    ],
)
def test_what_a_line_says(line: str, session: str | None, rdinit: str) -> None:
    assert (session_of(line), old_rdinit(line)) == (session, rdinit)


def test_the_size_is_the_kernel_s() -> None:
    assert cmdline.COMMAND_LINE_SIZE == 2048
