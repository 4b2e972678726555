# SPDX-License-Identifier: MIT
"""Boot loaders below a directory, with programs that do with shell what the real ones do."""

from collections.abc import Sequence
from pathlib import Path

from builders.host import Machine
from builders.programs import Programs

KERNELS = ("6.12.107+deb13-amd64", "6.12.117+deb13-amd64")
LOADER_INFO = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"

# As Debian's grub-mkconfig and 10_linux do: drop-ins are read, the arguments go unquoted into a here-document.
MKCONFIG = r"""
set -e
root=@ROOT@
output=@ROOT@/boot/grub/grub.cfg
[ "$1" != -o ] || output=$2
. "$root/etc/default/grub"
for x in "$root"/etc/default/grub.d/*.cfg; do
    if [ -e "$x" ]; then . "$x"; fi
done
export GRUB_CMDLINE_LINUX GRUB_CMDLINE_LINUX_DEFAULT
sh -e <<'SCRIPT' >"$output.new"
linux_entry() {
    echo "menuentry '$1' --class gnu-linux {" | sed "s/^/$submenu_indentation/"
    sed "s/^/$submenu_indentation/" << EOF
	linux	/boot/vmlinuz-$1 root=UUID=1-2 ro ${2}
	initrd	/boot/initrd.img-$1
}
EOF
}
echo '### BEGIN /etc/grub.d/00_header ###'
echo '### END /etc/grub.d/00_header ###'
echo '### BEGIN /etc/grub.d/10_linux ###'
for release in @KERNELS@; do
    linux_entry "$release" "${GRUB_CMDLINE_LINUX} ${GRUB_CMDLINE_LINUX_DEFAULT}"
    linux_entry "$release" "single ${GRUB_CMDLINE_LINUX}"
done
echo '### END /etc/grub.d/10_linux ###'
echo '### BEGIN /etc/grub.d/30_os-prober ###'
printf 'menuentry other {\n\tlinux /vmlinuz root=/dev/sdb1\n}\n'
echo '### END /etc/grub.d/30_os-prober ###'
SCRIPT
mv "$output.new" "$output"
"""

# As 90-loaderentry.install does
KERNEL_INSTALL = r"""
set -e
root=@ROOT@
[ "$1" = add ] && [ -f "$3" ]
if [ -f "$root/etc/kernel/cmdline" ]; then
    options="$(tr -s "$IFS" ' ' <"$root/etc/kernel/cmdline")"
elif [ -f "$root/usr/lib/kernel/cmdline" ]; then
    options="$(tr -s "$IFS" ' ' <"$root/usr/lib/kernel/cmdline")"
else
    options="$(tr -s "$IFS" '\n' <"$root/proc/cmdline" | grep -ve '^BOOT_IMAGE=' -e '^initrd=' | tr '\n' ' ')"
fi
options="${options% }"
echo "$options" | grep -q systemd.machine_id= || options="$options systemd.machine_id=abc"
printf 'title Debian\nversion %s\noptions %s\nlinux /abc/%s/linux\n' "$2" "$options" "$2" \
    >"$root/boot/efi/loader/entries/abc-$2.conf"
"""


def install_grub(machine: Machine, programs: Programs, line: str = "quiet", *, update: bool = True) -> None:
    """Make a host that boots with GRUB."""
    machine.file(
        "/etc/default/grub", f'GRUB_CMDLINE_LINUX_DEFAULT="{line}"\nGRUB_CMDLINE_LINUX="net.ifnames=0"'
    )
    body = MKCONFIG.replace("@ROOT@", str(machine.root)).replace("@KERNELS@", " ".join(KERNELS))
    (machine.root / "boot/grub").mkdir(parents=True)
    programs.add("grub-mkconfig", body)
    if update:
        programs.add(
            "update-grub",
            f'exec {programs.directory}/grub-mkconfig -o {machine.root}/boot/grub/grub.cfg "$@"',
        )
    run_program(programs, "grub-mkconfig")


def install_systemd_boot(machine: Machine, programs: Programs) -> None:
    """Make a host that boots with systemd-boot."""
    for release in KERNELS:
        machine.file(f"/usr/lib/modules/{release}/modules.dep", "")
        machine.file(f"/boot/vmlinuz-{release}", "image")
    (machine.root / "boot/efi/loader/entries").mkdir(parents=True)
    programs.add("kernel-install", KERNEL_INSTALL.replace("@ROOT@", str(machine.root)))
    for release in KERNELS:
        run_program(programs, "kernel-install", "add", release, f"{machine.root}/boot/vmlinuz-{release}")
    started_by(machine, "systemd-boot 257.9")


def started_by(machine: Machine, name: str) -> None:
    """Have the boot loader say who it is."""
    machine.file(LOADER_INFO, "").write_bytes(b"\x06\0\0\0" + f"{name}\0".encode("utf-16-le"))


def run_program(programs: Programs, name: str, *words: str) -> None:
    """Call a program as a user would."""
    from upgrade.process import run

    run([programs.directory / name, *words])


def lines(config: Path) -> list[str]:
    """Return what stands in a configuration behind ``linux``."""
    return [
        line.split(None, 1)[1] for line in config.read_text().splitlines() if line.split()[:1] == ["linux"]
    ]


def options(machine: Machine) -> Sequence[str]:
    """Return the command lines of systemd-boot's entries."""
    entries = sorted((machine.root / "boot/efi/loader/entries").iterdir())
    return [
        line.removeprefix("options ")
        for entry in entries
        for line in entry.read_text().splitlines()
        if line.startswith("options ")
    ]
