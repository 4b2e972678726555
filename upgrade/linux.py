# SPDX-License-Identifier: MIT
"""System calls that Python's standard library lacks, and the kernel's constants for them.

Scope: thin wrappers for x86-64 that raise OSError with the name of the call. No policy.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import sys
from collections.abc import Callable
from typing import Final

from memfs import libc

# arch/x86/entry/syscalls/syscall_64.tbl
SYS_REBOOT: Final = 169
SYS_KEXEC_LOAD: Final = 246
SYS_OPEN_BY_HANDLE_AT: Final = 304
SYS_KCMP: Final = 312
SYS_KEXEC_FILE_LOAD: Final = 320
SYS_FSOPEN: Final = 430
SYS_FSCONFIG: Final = 431
SYS_FSMOUNT: Final = 432
SYS_PIDFD_GETFD: Final = 438

# include/uapi/linux/kexec.h
KEXEC_FILE_UNLOAD: Final = 0x1
KEXEC_FILE_NO_INITRAMFS: Final = 0x4
# None of the calls takes this: all flags at once, those that nobody has thought of included
_KEXEC_NO_FLAGS: Final = (1 << 64) - 1

# include/uapi/asm-generic/mman-common.h
MADV_POPULATE_READ: Final = 22

# include/uapi/asm-generic/mman.h
PROT_READ: Final = 0x1
MAP_SHARED: Final = 0x01
MAP_NORESERVE: Final = 0x4000

# include/uapi/linux/memfd.h
MFD_HUGETLB: Final = 0x4
MFD_HUGE_SHIFT: Final = 26

# include/uapi/linux/sched.h
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWNET: Final = 0x40000000

# include/uapi/linux/kcmp.h
KCMP_FILE: Final = 0
KCMP_VM: Final = 1
KCMP_FILES: Final = 2
KCMP_FS: Final = 3
KCMP_SIGHAND: Final = 4
KCMP_EPOLL_TFD: Final = 7

# include/uapi/linux/shm.h
SHM_RDONLY: Final = 0o10000

# include/uapi/linux/mount.h
MS_BIND: Final = 0x1000

MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
_FSOPEN_CLOEXEC: Final = 0x1
_FSMOUNT_CLOEXEC: Final = 0x1
_FSCONFIG_SET_STRING: Final = 1
_FSCONFIG_CMD_CREATE: Final = 6

# include/uapi/linux/timex.h: room for struct timex, which has 208 bytes, and adjtimex(2)'s answer
_TIMEX_BYTES: Final = 256
_TIME_ERROR: Final = 5

# include/uapi/linux/reboot.h
LINUX_REBOOT_MAGIC1: Final = 0xFEE1DEAD
LINUX_REBOOT_MAGIC2: Final = 672274793
LINUX_REBOOT_CMD_KEXEC: Final = 0x45584543

# include/uapi/linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int)
FIFREEZE: Final = 0xC0045877
FITHAW: Final = 0xC0045878

# rdtsc; shl rdx, 32; or rax, rdx; ret -- preceded by lfence, so that it is not read too early
# (Intel SDM volume 2, RDTSC).
_RDTSC: Final = bytes.fromhex("0faee80f3148c1e2204809d0c3")


def kexec_file_load(kernel_fd: int, initrd_fd: int | None, command_line: str) -> None:
    """Load a kernel for the next kexec; the kernel itself checks image and signature."""
    text = command_line.encode() + b"\0"
    flags = KEXEC_FILE_NO_INITRAMFS if initrd_fd is None else 0
    libc.call(
        "kexec_file_load",
        SYS_KEXEC_FILE_LOAD,
        ctypes.c_int(kernel_fd),
        ctypes.c_int(-1 if initrd_fd is None else initrd_fd),
        ctypes.c_ulong(len(text)),
        ctypes.c_char_p(text),
        ctypes.c_ulong(flags),
    )


def kexec_unload() -> None:
    """Forget the loaded kernel, however it was loaded; harmless if there is none."""
    try:
        _kexec_file_call(KEXEC_FILE_UNLOAD)
    except OSError as e:
        if e.errno != errno.ENOSYS:
            raise
        _kexec_call(0)  # no segments: nothing is loaded afterwards


def kexec_calls() -> tuple[str, ...]:
    """Return those of ``kexec_file_load`` and ``kexec_load`` that the kernel has.

    Each is called with flags that it does not know. To a caller with CAP_SYS_BOOT this counts as a load: do not ask
    while ``kexec_load_limit_reboot`` is set.
    """
    calls = {"kexec_file_load": _kexec_file_call, "kexec_load": _kexec_call}
    return tuple(name for name, call in calls.items() if _exists(call))


def _exists(call: Callable[[int], None]) -> bool:
    try:
        call(_KEXEC_NO_FLAGS)
    except OSError as e:
        return e.errno != errno.ENOSYS
    return True


def _kexec_file_call(flags: int) -> None:
    """Call kexec_file_load(2) without files."""
    libc.call(
        "kexec_file_load",
        SYS_KEXEC_FILE_LOAD,
        ctypes.c_int(-1),
        ctypes.c_int(-1),
        ctypes.c_ulong(0),
        ctypes.c_char_p(None),
        ctypes.c_ulong(flags),
    )


def _kexec_call(flags: int) -> None:
    """Call kexec_load(2) without segments."""
    libc.call(
        "kexec_load",
        SYS_KEXEC_LOAD,
        ctypes.c_ulong(0),
        ctypes.c_ulong(0),
        ctypes.c_void_p(None),
        ctypes.c_ulong(flags),
    )


def reboot_kexec() -> None:
    """Enter the loaded kernel now. Returns only by raising OSError."""
    libc.call(
        "reboot",
        SYS_REBOOT,
        ctypes.c_uint(LINUX_REBOOT_MAGIC1),
        ctypes.c_uint(LINUX_REBOOT_MAGIC2),
        ctypes.c_uint(LINUX_REBOOT_CMD_KEXEC),
        ctypes.c_void_p(None),
    )


def freeze_filesystem(mount_point: str) -> None:
    """Write a file system's dirty data back and refuse further writes until it is thawed."""
    _filesystem_ioctl(mount_point, FIFREEZE)


def thaw_filesystem(mount_point: str) -> None:
    """Let a frozen file system be written to again."""
    _filesystem_ioctl(mount_point, FITHAW)


def _filesystem_ioctl(mount_point: str, request: int) -> None:
    fd = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK)
    try:
        fcntl.ioctl(fd, request, 0)
    finally:
        os.close(fd)


def sync_filesystem(where: str) -> None:
    """Write one file system back (syncfs(2))."""
    fd = os.open(where, os.O_RDONLY | os.O_DIRECTORY)
    try:
        if libc.library().syncfs(fd) != 0:
            raise libc.failed("syncfs")
    finally:
        os.close(fd)


def clock_is_synchronised() -> bool:
    """Tell whether NTP keeps the clock right (adjtimex(2); nothing is changed)."""
    adjtimex = ctypes.CDLL(None, use_errno=True).adjtimex
    # all zeros: no modes, so that it is only read
    return int(adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))) not in (-1, _TIME_ERROR)


def tsc_reader() -> Callable[[], int]:
    """Return a function that reads the processor's time stamp counter.

    Python cannot execute an instruction, so a page of machine code is mapped; the counter is the one clock
    that runs on across kexec.
    """
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(_RDTSC)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    function = ctypes.CFUNCTYPE(ctypes.c_uint64)(address)

    def read(_page: mmap.mmap = page) -> int:  # the default keeps the page mapped
        return int(function())

    return read


def reader_ahead() -> Callable[[int, int], None]:
    """Return a function that has the page tables of a mapping of ours filled (madvise(2), Linux 5.14).

    It takes address and size in bytes. It may be called a hundred thousand times.
    """
    madvise = libc.library().madvise
    madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)

    def populate_read(address: int, size_bytes: int) -> None:
        if madvise(address, size_bytes, MADV_POPULATE_READ) != 0:
            raise libc.failed("madvise(MADV_POPULATE_READ)")

    return populate_read


def map_shared(fd: int, size_bytes: int) -> int:
    """Map an object for reading, also what lies behind its end; return the address (mmap(2))."""
    libc.library().mmap.restype = ctypes.c_ssize_t
    # no reservation: else the holes of an object of huge pages would need as many of them
    address = int(
        libc.library().mmap(
            None, ctypes.c_size_t(size_bytes), PROT_READ, MAP_SHARED | MAP_NORESERVE, fd, ctypes.c_long(0)
        )
    )
    if address == -1:
        raise libc.failed("mmap")
    return address


def unmap(address: int, size_bytes: int) -> None:
    """Unmap what ``map_shared`` mapped (munmap(2))."""
    if libc.library().munmap(ctypes.c_void_p(address), ctypes.c_size_t(size_bytes)) != 0:
        raise libc.failed("munmap")


def enter_ipc_namespace(fd: int) -> None:
    """Move the calling thread to an IPC namespace (setns(2))."""
    if libc.library().setns(fd, CLONE_NEWIPC) != 0:
        raise libc.failed("setns")


def attach_shared_memory(number: int) -> int:
    """Attach a segment of System V shared memory for reading; return its address (shmat(2))."""
    libc.library().shmat.restype = ctypes.c_ssize_t
    address = int(libc.library().shmat(number, None, SHM_RDONLY))
    if address == -1:
        raise libc.failed("shmat")
    return address


def detach_shared_memory(address: int) -> None:
    """Detach a segment (shmdt(2))."""
    if libc.library().shmdt(ctypes.c_void_p(address)) != 0:
        raise libc.failed("shmdt")


def bind_mount(source: str, target: str) -> None:
    """Have ``target`` show what is at ``source`` (mount(2))."""
    if libc.library().mount(source.encode(), target.encode(), None, ctypes.c_ulong(MS_BIND), None) != 0:
        raise libc.failed("mount")


def unmount(target: str) -> None:
    """Unmount what is at ``target`` (umount2(2))."""
    if libc.library().umount2(target.encode(), 0) != 0:
        raise libc.failed("umount2")


def detached_tmpfs(size_bytes: int) -> int:
    """Return a descriptor of an empty tmpfs that is mounted nowhere (fsmount(2)); with its last user it is gone."""
    made = libc.call("fsopen", SYS_FSOPEN, ctypes.c_char_p(b"tmpfs"), ctypes.c_uint(_FSOPEN_CLOEXEC))
    try:
        for name, value in (("size", str(size_bytes)), ("mode", "0700")):
            _configure(made, _FSCONFIG_SET_STRING, name.encode(), value.encode())
        _configure(made, _FSCONFIG_CMD_CREATE, None, None)
        flags = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC
        return libc.call("fsmount", SYS_FSMOUNT, made, ctypes.c_uint(_FSMOUNT_CLOEXEC), ctypes.c_uint(flags))
    finally:
        os.close(made)


def _configure(made: int, command: int, name: bytes | None, value: bytes | None) -> None:
    words = ctypes.c_uint(command), ctypes.c_char_p(name), ctypes.c_char_p(value), ctypes.c_int(0)
    libc.call("fsconfig", SYS_FSCONFIG, made, *words)


def duplicate_of(pid: int, number: int) -> int:
    """Return a descriptor of ours for what descriptor ``number`` of a process is (pidfd_getfd(2), Linux 5.6)."""
    process = os.pidfd_open(pid)
    try:
        return libc.call("pidfd_getfd", SYS_PIDFD_GETFD, process, number, 0)
    finally:
        os.close(process)


def comparer() -> Callable[[int, int, int], int]:
    """Return a function that compares a thing (``KCMP_``) of two processes (kcmp(2)).

    It returns 0 if they share it, else which comes first: -1 or 1. It may be called thousands of times.
    """
    library = libc.library()
    none = ctypes.c_ulong(0)

    def compare(kind: int, one: int, other: int) -> int:
        result = library.syscall(ctypes.c_long(SYS_KCMP), one, other, kind, none, none)
        if result < 0:
            raise libc.failed("kcmp")
        return (0, -1, 1, 1)[result]

    return compare


def is_same_file(pid: int, number: int, other: int, of_other: int) -> bool:
    """Tell whether descriptors of two processes are of one open file (kcmp(2))."""
    numbers = ctypes.c_ulong(number), ctypes.c_ulong(of_other)
    return libc.call("kcmp", SYS_KCMP, pid, other, KCMP_FILE, *numbers) == 0


def is_watched(pid: int, number: int, epoll: int, watched: int, earlier: int) -> bool:
    """Tell whether a descriptor is what an epoll of the same process calls ``watched`` (kcmp(2)).

    :param earlier: how many others the epoll calls by the same number, before this one
    """
    slot = (ctypes.c_uint32 * 3)(epoll, watched, earlier)
    kind, file, where = KCMP_EPOLL_TFD, ctypes.c_ulong(number), ctypes.byref(slot)
    return libc.call("kcmp", SYS_KCMP, pid, pid, kind, file, where) == 0


def open_by_handle(mount_fd: int, kind: int, handle: bytes) -> int:
    """Open a file by its handle, only as a place (open_by_handle_at(2), ``O_PATH``)."""
    header = len(handle).to_bytes(4, sys.byteorder) + kind.to_bytes(4, sys.byteorder, signed=True)
    flags = os.O_PATH | os.O_CLOEXEC
    buffer = ctypes.create_string_buffer(header + handle, len(header) + len(handle))
    return libc.call("open_by_handle_at", SYS_OPEN_BY_HANDLE_AT, mount_fd, buffer, flags)


def enter_network_namespace(fd: int) -> None:
    """Move the calling thread to a network namespace (setns(2))."""
    if libc.library().setns(fd, CLONE_NEWNET) != 0:
        raise libc.failed("setns")
