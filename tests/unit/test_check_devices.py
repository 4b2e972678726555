# SPDX-License-Identifier: MIT
"""Tests of ``upgrade.check.devices``: devices.known-bad, devices.shutdown, devices.dma, devices.gpu, devices.vfio,
devices.sriov, devices.watchdog and devices.network."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from builders import devices as fake
from builders.checks import complete, findings, only, situation
from builders.host import Machine

import upgrade.check
from upgrade.check.devices import hardware, known
from upgrade.check.devices.inuse import gpu, sriov, vfio, watchdog
from upgrade.check.devices.known import Entry, known_bad
from upgrade.check.devices.network import network
from upgrade.check.devices.shutdown import dma, shutdown
from upgrade.check.model import Finding, Status
from upgrade.check.situation import Unknown

PASS, WARN, FAIL = Status.PASS, Status.WARN, Status.FAIL
DATA = Path(upgrade.check.__file__).parent / "data" / "drivers.toml"
ENTRIES = known.entries()
DISPLAY, ACCELERATOR, BRIDGE = 0x030000, 0x120000, 0x060400

every_entry = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: "-".join(entry.names))
probed = pytest.mark.parametrize(
    "entry", [each for each in ENTRIES if each.probe], ids=lambda entry: "-".join(entry.names)
)


def told(machine: Machine) -> list[Finding]:
    return findings(known_bad, situation(machine.host))


def put_in(machine: Machine, entry: Entry) -> str:
    """Give the machine what an entry is about, and return how it is named."""
    name = entry.names[0]
    if entry.bus == known.MODULE:
        machine.file(f"/sys/module/{name}/refcnt", "2")
        return f"module {name}"
    where = "0000:00:1f.6" if entry.bus in ("pci", "*") else f"{entry.bus}-1"
    if entry.bus in ("pci", "*"):
        fake.pci(machine, where, name, name, id=(entry.ids or ("8086:1234",))[0])
    else:
        fake.device(machine, entry.bus, where, name, name)
    return f"{name} ({where})"


# --- devices.known-bad ---------------------------------------------------------------------------------------------


def test_the_data_file_has_enough_to_say() -> None:
    assert len(ENTRIES) >= 20
    assert len({(each.names, each.bus) for each in ENTRIES}) == len(ENTRIES)


@every_entry
def test_an_entry_is_complete(entry: Entry) -> None:
    assert entry.severity in ("fail", "warn", "history")
    assert entry.symptom
    assert not entry.symptom.endswith(".")
    assert entry.remedy
    assert entry.sources
    assert all(re.fullmatch(r"https?://[^\s]+\.[^\s]+/[^\s]+", each) for each in entry.sources)
    assert known.PROBED in entry.probe or not entry.probe
    assert re.fullmatch(r"([0-9a-f]{12})?", entry.fixed)
    assert all(re.fullmatch(r"[0-9a-f]{4}:[0-9a-f]{4}", each) for each in entry.ids)


def test_no_entry_has_a_misspelt_field() -> None:
    document: dict[str, Any] = tomllib.loads(DATA.read_text())
    assert set(document) == {"driver", "elsewhere"}
    fields = set(Entry.__dataclass_fields__)
    assert [set(each) - fields for each in document["driver"]] == [set()] * len(ENTRIES)


@every_entry
def test_a_driver_with_a_history_is_told(machine: Machine, entry: Entry) -> None:
    subject = put_in(machine, entry)
    fake.functions(machine)
    (found,) = [each for each in told(machine) if entry.symptom in f"{each.reason} {each.seen}"]
    assert found.subject == subject
    assert found.status is {"history": PASS, "warn": WARN, "fail": FAIL}[entry.severity]
    assert complete(found)
    if entry.severity != "history":
        assert (found.reason, found.remedy) == (entry.symptom, entry.remedy)
        assert found.source == ", ".join(entry.sources)


@probed
def test_a_kernel_with_the_fix_is_not_told(machine: Machine, entry: Entry) -> None:
    put_in(machine, entry)
    fake.functions(machine, f"{entry.probe} [{entry.names[0]}]")
    found = only(known_bad, situation(machine.host), PASS)
    assert found.subject == "drivers"
    assert found.seen == "1 devices, 1 drivers, none is known for trouble"


def test_good_drivers_are_counted(machine: Machine) -> None:
    fake.pci(machine, "0000:00:01.0", "nvme", "nvme")
    fake.pci(machine, "0000:00:02.0", "nvme", "nvme")
    fake.device(machine, "virtio", "virtio0", "virtio_net", "virtio_net")
    found = only(known_bad, situation(machine.host), PASS)
    assert (found.subject, found.seen) == ("drivers", "3 devices, 2 drivers, none is known for trouble")


def test_several_devices_of_a_driver_are_told_once(machine: Machine) -> None:
    for number in range(6):
        fake.pci(machine, f"0000:00:0{number}.0", "ena", "ena")
    fake.functions(machine)
    found = only(known_bad, situation(machine.host), WARN)
    assert found.subject == (
        "ena (0000:00:00.0), ena (0000:00:01.0), ena (0000:00:02.0), ena (0000:00:03.0) and 2 more"
    )
    assert found.source == "https://git.kernel.org/torvalds/c/428c491332bc"


@pytest.mark.parametrize(
    ("where", "id"), [("0000:00:19.0", "8086:1234"), ("0000:03:00.0", "8086:15bb")], ids=["function", "card"]
)
def test_an_address_limits_an_entry(machine: Machine, where: str, id: str) -> None:
    fake.pci(machine, where, "e1000e", "e1000e", id=id)
    only(known_bad, situation(machine.host), PASS)


def test_an_id_limits_an_entry(machine: Machine) -> None:
    fake.pci(machine, "0000:00:14.0", "xhci_hcd", "xhci_pci", id="8086:a36d")
    assert only(known_bad, situation(machine.host), PASS).subject == "drivers"
    fake.pci(machine, "0000:02:00.0", "xhci_hcd", "xhci_pci", id="104c:8241")
    assert only(known_bad, situation(machine.host), WARN).subject == "xhci_hcd (0000:02:00.0)"


def test_a_driver_of_this_name_on_another_bus_is_another(machine: Machine) -> None:
    fake.device(machine, "platform", "ahci.0", "ahci", "ahci_platform")
    only(known_bad, situation(machine.host), PASS)


def test_kvm_that_nobody_uses_is_not_told(machine: Machine) -> None:
    machine.file("/sys/module/kvm_intel/refcnt", "0")
    only(known_bad, situation(machine.host), PASS)


def test_without_kallsyms_fixes_are_not_known(machine: Machine) -> None:
    fake.pci(machine, "0000:00:05.0", "ena", "ena")
    with pytest.raises(FileNotFoundError):
        told(machine)


# --- devices.shutdown ----------------------------------------------------------------------------------------------


def test_drivers_with_a_shutdown_method_pass(machine: Machine) -> None:
    fake.pci(machine, "0000:00:01.0", "nvme", "nvme")
    fake.pci(machine, "0000:00:02.0", "igb", "igb")
    fake.functions(machine, "nvme_shutdown [nvme]", "igb_shutdown [igb]")
    found = only(shutdown, situation(machine.host), PASS)
    assert found.seen == "2 write to memory by themselves, and their drivers have a shutdown method"


@pytest.mark.parametrize("iommu", [True, False])
def test_a_module_without_one_is_told(machine: Machine, iommu: bool) -> None:
    fake.pci(machine, "0000:05:00.0", "bad", "bad_mod", iommu=iommu)
    fake.pci(machine, "0000:05:00.1", "bad", "bad_mod", iommu=iommu)
    fake.functions(machine, "other_shutdown [other]", "bad_probe [bad_mod]")
    found = only(shutdown, situation(machine.host), WARN)
    assert found.subject == "bad (0000:05:00.0, 0000:05:00.1)"
    assert "the module bad_mod has no shutdown method" in found.seen
    assert ("no IOMMU" in found.seen) is not iommu
    assert "modprobe -r bad_mod" in found.remedy


def test_bad_and_good_ones_are_told_apart(machine: Machine) -> None:
    fake.pci(machine, "0000:00:01.0", "nvme", "nvme")
    fake.pci(machine, "0000:00:02.0", "bad", "bad")
    fake.functions(machine, "nvme_shutdown [nvme]")
    found = findings(shutdown, situation(machine.host))
    assert [(each.status, each.subject) for each in found] == [
        (WARN, "bad (0000:00:02.0)"),
        (PASS, "devices"),
    ]
    assert found[1].seen.startswith("1 write")


@pytest.mark.parametrize(
    ("kind", "command", "driver"),
    [
        (0x020000, fake.IO_AND_MEMORY, "bad"),
        (BRIDGE, fake.BUS_MASTER, "pcieport"),
        (0x020000, fake.BUS_MASTER, "vfio-pci"),
    ],
    ids=["no bus master", "bridge", "vfio"],
)
def test_what_writes_nothing_is_not_told(machine: Machine, kind: int, command: int, driver: str) -> None:
    fake.pci(machine, "0000:00:02.0", driver, "bad", kind=kind, command=command)
    fake.functions(machine)
    assert only(shutdown, situation(machine.host), PASS).seen.startswith("none of those")


def test_a_method_may_be_in_another_module(machine: Machine) -> None:
    fake.pci(machine, "0000:00:02.0", "virtio-pci", "virtio_pci")
    fake.functions(machine, "virtio_dev_shutdown [virtio]")
    assert "not known" not in only(shutdown, situation(machine.host), PASS).seen
    fake.functions(machine)
    assert "not known: virtio-pci" in only(shutdown, situation(machine.host), PASS).seen


def test_a_driver_that_is_built_in_is_known_by_its_name_only(machine: Machine) -> None:
    fake.pci(machine, "0000:00:01.0", "nvme")
    fake.pci(machine, "0000:00:02.0", "snd_hda_intel")
    fake.functions(machine, "nvme_shutdown")
    assert only(shutdown, situation(machine.host), PASS).seen == (
        "2 write to memory by themselves, and their drivers have a shutdown method"
        " (built in, so not known: snd_hda_intel)"
    )


def test_parameters_of_a_driver_that_is_built_in_make_no_module(machine: Machine) -> None:
    fake.pci(machine, "0000:00:01.0", "xyz")
    machine.file("/sys/module/xyz/parameters/debug", "0")
    fake.link(machine, "/sys/bus/pci/drivers/xyz/module", "/sys/module/xyz")
    fake.functions(machine, "other_shutdown")
    assert "built in, so not known: xyz" in only(shutdown, situation(machine.host), PASS).seen


def test_without_kallsyms_nothing_is_known(machine: Machine) -> None:
    fake.pci(machine, "0000:00:01.0", "nvme", "nvme")
    with pytest.raises(Unknown, match="which drivers have a shutdown method is not known"):
        findings(shutdown, situation(machine.host))


def test_data_of_this_name_is_no_method(machine: Machine) -> None:
    fake.pci(machine, "0000:00:01.0", "bad", "bad")
    machine.file("/proc/kallsyms", "0000000000000000 d bad_shutdown_timeout\t[bad]")
    only(shutdown, situation(machine.host), WARN)


# --- devices.dma ---------------------------------------------------------------------------------------------------


def test_devices_that_no_iommu_keeps_out_are_counted(machine: Machine) -> None:
    fake.pci(machine, "0000:00:01.0", "nvme", "nvme")
    fake.pci(machine, "0000:00:02.0", "igb", "igb", iommu=True)
    fake.pci(machine, "0000:00:03.0", "snd", "snd", command=fake.IO_AND_MEMORY)
    assert only(dma, situation(machine.host), PASS).seen == (
        "2 write to memory by themselves, 1 of them with no IOMMU in between; the kernel turns that off before the jump"
    )


def test_with_an_iommu_nothing_has_to_be_turned_off(machine: Machine) -> None:
    fake.pci(machine, "0000:00:02.0", "igb", "igb", iommu=True)
    assert (
        only(dma, situation(machine.host), PASS).seen
        == "1 write to memory by themselves, 0 of them with no IOMMU in between"
    )


# --- devices.gpu, devices.vfio -------------------------------------------------------------------------------------


def test_no_gpu(machine: Machine) -> None:
    fake.pci(machine, "0000:00:02.0", "igb", "igb")
    fake.open_file(machine, 7, "/dev/dri/card0")
    assert only(gpu, situation(machine.host), PASS).seen == "none with a driver"


@pytest.mark.parametrize("kind", [DISPLAY, ACCELERATOR])
def test_a_gpu_that_nobody_uses(machine: Machine, kind: int) -> None:
    fake.pci(machine, "0000:01:00.0", "amdgpu", "amdgpu", kind=kind)
    fake.open_file(machine, 7, "/dev/null")
    found = only(gpu, situation(machine.host), PASS)
    assert (found.subject, found.seen) == ("amdgpu (0000:01:00.0)", "no program uses it")


@pytest.mark.parametrize("path", ["/dev/nvidia0", "/dev/dri/renderD128", "/dev/kfd", "/dev/accel/accel0"])
def test_a_gpu_that_a_program_uses(machine: Machine, path: str) -> None:
    fake.pci(machine, "0000:01:00.0", "nvidia", "nvidia", kind=DISPLAY)
    fake.open_file(machine, 7, "/dev/null")
    fake.open_file(machine, 7, path, "python3")
    fake.open_file(machine, 7, path, "python3")
    found = only(gpu, situation(machine.host), WARN)
    assert (found.subject, found.seen) == ("nvidia (0000:01:00.0)", "is used by python3 (PID 7)")


def test_a_driver_without_a_device_in_sysfs_is_seen_by_its_file(machine: Machine) -> None:
    machine.file("/dev/nvidiactl", "")
    fake.open_file(machine, 7, "/dev/nvidiactl", "python3")
    assert only(gpu, situation(machine.host), WARN).seen == "is used by python3 (PID 7)"


def test_vfio_is_not_used(machine: Machine) -> None:
    fake.pci(machine, "0000:00:02.0", "igb", "igb")
    assert only(vfio, situation(machine.host), PASS).seen == "not used"


def test_a_device_kept_for_vfio(machine: Machine) -> None:
    fake.pci(machine, "0000:00:02.0", "vfio-pci", "vfio_pci")
    found = only(vfio, situation(machine.host), PASS)
    assert (found.subject, found.seen) == (
        "vfio-pci (0000:00:02.0)",
        "1 devices are kept for VFIO, no program drives one",
    )


def test_a_device_driven_by_a_program(machine: Machine) -> None:
    fake.pci(machine, "0000:00:02.0", "vfio-pci", "vfio_pci")
    fake.open_file(machine, 12, "/dev/vfio/9", "qemu-system-x86")
    found = only(vfio, situation(machine.host), WARN)
    assert (found.subject, found.seen) == ("vfio-pci (0000:00:02.0)", "is driven by qemu-system-x86 (PID 12)")


def test_a_file_that_is_closed_meanwhile_hides_no_other(machine: Machine) -> None:
    machine.file("/proc/7/fd/0", "")  # no link: readlink fails, though not as for a closed one
    with pytest.raises(OSError, match="Invalid argument"):
        list(hardware.users(machine.host, lambda path: True))
    (machine.root / "proc/7/fd/0").unlink()
    fake.open_file(machine, 7, "/dev/vfio/9", "qemu")
    machine.file("/proc/8/comm", "gone")  # no fd directory: it has ended
    assert list(hardware.users(machine.host, lambda path: path.startswith("/dev/vfio"))) == [
        ("/dev/vfio/9", 7, "qemu")
    ]


# --- devices.sriov -------------------------------------------------------------------------------------------------


def test_no_virtual_functions(machine: Machine) -> None:
    base = fake.pci(machine, "0000:00:02.0", "ixgbe", "ixgbe")
    machine.file(f"{base}/sriov_numvfs", "0")
    assert only(sriov, situation(machine.host), PASS).subject == "virtual functions"


def test_virtual_functions(machine: Machine) -> None:
    base = fake.pci(machine, "0000:00:02.0", "ixgbe", "ixgbe")
    machine.file(f"{base}/sriov_numvfs", "2")
    for number, driver in enumerate(("ixgbevf", "vfio-pci")):
        there = fake.pci(machine, f"0000:00:02.{number + 1}", driver, driver)
        fake.link(machine, f"{base}/virtfn{number}", there)
    found = only(sriov, situation(machine.host), WARN)
    assert found.subject == "ixgbe (0000:00:02.0)"
    assert found.seen == "has 2 virtual functions, taken by ixgbevf, vfio-pci"


def test_mediated_devices(machine: Machine) -> None:
    fake.directory(machine, "/sys/bus/mdev/devices/83b8f4f2-509f-382f-3c1e-e6bfe0fa1001")
    found = only(sriov, situation(machine.host), WARN)
    assert (found.subject, found.seen) == ("83b8f4f2-509f-382f-3c1e-e6bfe0fa1001", "1 mediated devices")


# --- devices.watchdog ----------------------------------------------------------------------------------------------


def dog(machine: Machine, name: str, state: str, seconds: int) -> None:
    base = f"/sys/class/watchdog/{name}"
    for file, text in (("state", state), ("timeout", str(seconds)), ("identity", "iTCO_wdt")):
        machine.file(f"{base}/{file}", text)


def test_no_watchdog(machine: Machine) -> None:
    assert only(watchdog, situation(machine.host), PASS).seen == "none runs"
    dog(machine, "watchdog0", "inactive", 30)
    assert only(watchdog, situation(machine.host), PASS).seen == "none runs"


def test_a_patient_watchdog(machine: Machine) -> None:
    dog(machine, "watchdog0", "active", 600)
    assert only(watchdog, situation(machine.host), PASS).seen == "watchdog0: 600 s"


def test_an_impatient_watchdog(machine: Machine) -> None:
    dog(machine, "watchdog0", "active", 600)
    dog(machine, "watchdog1", "active", 30)
    found = only(watchdog, situation(machine.host), WARN)
    assert (found.subject, found.seen) == (
        "iTCO_wdt (watchdog1)",
        "resets the machine when it is not fed for 30 s",
    )


# --- devices.network -----------------------------------------------------------------------------------------------


def routes(machine: Machine, name: str) -> None:
    machine.file(
        "/proc/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        f"{name}\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0",
    )
    machine.file(
        "/proc/net/ipv6_route", f"{'0' * 32} 00 {'0' * 32} 00 {'f' * 32} 00000001 1 0 00200200       lo"
    )


def test_network_cards_and_what_engines_make(machine: Machine) -> None:
    fake.net(machine, "eth0", card=True)
    fake.net(machine, "lo", type="772")
    fake.net(machine, "docker0", devtype="bridge")
    fake.net(machine, "veth1")
    fake.directory(machine, "/sys/class/net/docker0/brif/veth1")
    routes(machine, "eth0")
    found = only(network, situation(machine.host), PASS)
    assert (found.subject, found.seen) == ("eth0", "plain network cards, brought up by the restore")


def test_no_network_card(machine: Machine) -> None:
    fake.net(machine, "lo", type="772")
    found = only(network, situation(machine.host), PASS)
    assert (found.subject, found.seen) == ("network", "no network card")


@pytest.mark.parametrize(
    ("name", "files", "expected"),
    [
        ("bond0", {"devtype": "bond"}, "bond0 (bond)"),
        ("eth0.5", {"devtype": "vlan"}, "eth0.5 (vlan)"),
        ("wg0", {"devtype": "wireguard", "type": "65534"}, "wg0 (wireguard)"),
        ("gre1", {"type": "778"}, "gre1 (gre)"),
        ("tun0", {"type": "65534", "tun_flags": "0x1001"}, "tun0 (tunnel)"),
        ("wlan0", {"devtype": "wlan", "card": True}, "wlan0 (wifi)"),
    ],
)
def test_links_that_come_back_later(
    machine: Machine, name: str, files: dict[str, Any], expected: str
) -> None:
    fake.net(machine, "eth0", card=True)
    fake.net(machine, name, **files)
    routes(machine, "eth0")
    assert only(network, situation(machine.host), WARN).subject == expected


def test_the_way_out_is_named(machine: Machine) -> None:
    fake.net(machine, "bond0", devtype="bond")
    routes(machine, "bond0")
    assert only(network, situation(machine.host), WARN).subject == "bond0 (bond, the way out)"


def test_a_bridge_with_a_card(machine: Machine) -> None:
    fake.net(machine, "eth0", card=True)
    fake.net(machine, "br0", devtype="bridge")
    fake.directory(machine, "/sys/class/net/br0/brif/eth0")
    assert only(network, situation(machine.host), WARN).subject == "br0 (bridge)"


def test_a_tap_of_a_virtual_machine_is_no_tunnel(machine: Machine) -> None:
    fake.net(machine, "tap0", tun_flags="0x1002")
    fake.link(machine, "/sys/class/net/tap0/master", "/sys/class/net/virbr0")
    fake.directory(machine, "/sys/class/net/virbr0")
    only(network, situation(machine.host), PASS)
