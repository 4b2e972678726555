# SPDX-License-Identifier: MIT
"""A report as text for terminals, at most 100 columns wide. Programs read the JSON form instead."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from upgrade.report.model import ContainerOutcome, ContainerReport, Outcome, Phase, Report

WIDTH = 96
BAR_WIDTH = 48
NAME_WIDTH = 28
PAGE_BYTES = 4096

GREEN, YELLOW, RED, BOLD, CYAN = "32;1", "33;1", "31;1", "1", "36"
OUTCOMES = {
    Outcome.UPGRADED: ("Upgraded", GREEN),
    Outcome.DEGRADED: ("Upgraded, degraded", YELLOW),
    Outcome.FAILED: ("Not upgraded", RED),
}
METHODS = {
    "in-place": "CRIU sees no difference: programs call the new vDSO at the addresses they know.",
    "proxy": "CRIU sees a difference: calls to the functions it knows are passed on to the new vDSO, "
    "all others run the old code.",
}
START_COMMANDS = {
    "podman": "podman start {}",
    "unit": "systemctl start {}",
    "docker": "docker start {}",
}


class Paint:
    """Colours, or none."""

    def __init__(self, colour: bool) -> None:
        self.colour = colour

    def __call__(self, text: str, code: str) -> str:
        """Return a text in a colour."""
        return f"\033[{code}m{text}\033[0m" if self.colour and text else text


def render(report: Report, *, colour: bool = False) -> str:
    """Return the report as text that ends with a newline."""
    paint = Paint(colour)
    sections = [
        _headline(report, paint),
        _section("Downtime", _phases(report.phases, paint), paint),
        _section("Containers", _containers(report.containers), paint),
        _section("vDSO", _vdso(report), paint),
        _section("Warnings", _bullets(report.warnings), paint),
        _section("What to do next", _next(report), paint),
    ]
    return "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n"


def _section(title: str, lines: Sequence[str], paint: Paint) -> list[str]:
    return [paint(title, BOLD), *(f"  {line}".rstrip() for line in lines)] if lines else []


RESTORE_MODES = {
    "copy": "",
    "eager": "; the rest stayed in place, read before the containers ran",
    "lazy": "; the rest stayed in place, read while the containers ran",
}


def _headline(report: Report, paint: Paint) -> list[str]:
    word, code = OUTCOMES[report.outcome]
    kernels = (report.kernel_from, report.kernel_to)
    lines = [f"{paint(word, code)}  {paint(' → '.join(kernels), BOLD)}  on {report.host}"]
    if report.reason:
        lines += textwrap.wrap(report.reason, WIDTH)
    if report.containers:
        restarted = sum(c.outcome is ContainerOutcome.RESTARTED for c in report.containers)
        preserved = len(report.containers) - restarted
        back = preserved - len(report.not_restored())
        away = f"{seconds(report.downtime_seconds)} ± {seconds(report.downtime_error_seconds)}"
        lines.append(f"{back} of {_count(preserved, 'container')} restored, away for {away}")
        if restarted:
            lines.append(f"{_count(restarted, 'container')} stopped before and started after it")
    if report.pages_total:
        total = report.pages_total * PAGE_BYTES
        lines.append(
            f"{size(report.bytes_copied)} of {size(total)} copied{RESTORE_MODES[report.restore_mode]}"
        )
    if report.gathering:
        moved = report.gathering["pages_outside_before"] - report.gathering["pages_outside_after"]
        took = seconds(report.gathering["seconds"])
        lines.append(
            f"{size(moved * PAGE_BYTES)} were moved to where they can stay before the freeze, in {took}"
        )
    lines.append(f"{_when(report.started_at)} to {_when(report.finished_at)} UTC, CRIU {report.criu_version}")
    lines.append(f"id {report.id}")
    if report.taint_before != report.taint_after:
        lines.append(f"kernel taint was {report.taint_before}, is {report.taint_after}")
    if report.livepatches_before != report.livepatches_after:
        before, after = (
            ", ".join(p) or "none" for p in (report.livepatches_before, report.livepatches_after)
        )
        lines += textwrap.wrap(f"live patches were {before}, are {after}", WIDTH)
    return lines


def _phases(phases: Sequence[Phase], paint: Paint) -> list[str]:
    """Return a line for each phase with its bar where it lies in the whole."""
    whole = sum(phase.seconds for phase in phases)
    if whole <= 0:
        return []
    label = max(len(phase.name) for phase in phases)
    lines, before = [], 0.0
    for phase in phases:
        share = f"{100 * phase.seconds / whole:3.0f} %"
        bar = paint(_bar(before / whole, phase.seconds / whole), CYAN)
        lines.append(f"{phase.name.ljust(label)}  {seconds(phase.seconds):>8}  {share}  {bar}")
        before += phase.seconds
    return [*lines, f"{'all of it'.ljust(label)}  {seconds(whole):>8}"]


def _bar(start: float, length: float) -> str:
    """Return a bar of ``length``, indented by ``start``, both parts of the whole."""
    first = min(round(start * BAR_WIDTH), BAR_WIDTH - 1)
    last = round((start + length) * BAR_WIDTH)
    return " " * first + ("█" * (last - first) if last > first else "▏")


def _containers(containers: Sequence[ContainerReport]) -> list[str]:
    if not containers:
        return []
    rows = [("NAME", "ENGINE", "OUTCOME", "AWAY", "TASKS", "THREADS", "MEMORY", "COPIED")]
    rows += [
        (
            c.name if len(c.name) <= NAME_WIDTH else c.name[: NAME_WIDTH - 1] + "…",
            c.engine,
            str(c.outcome),
            "-" if c.downtime_seconds is None else seconds(c.downtime_seconds),
            str(c.tasks),
            str(c.threads),
            size(c.pages_total * PAGE_BYTES),
            size(c.bytes_copied),
        )
        for c in containers
    ]
    lines = table(rows, right=range(3, 8))
    for c in containers:
        if c.memory_complete_seconds is not None:
            lines += _wrapped(
                f"{c.name}: the last of its memory came {seconds(c.memory_complete_seconds)} after the freeze"
            )
        if c.reason:
            lines += _wrapped(f"{c.name}: {c.reason}")
    return lines


def _vdso(report: Report) -> list[str]:
    vdso = report.vdso
    if not vdso:
        return []
    return render_vdso(vdso) + _affected(report.containers, vdso.get("symbols", ()))


def render_vdso(vdso: Mapping[str, Any]) -> list[str]:
    """Return the comparison of two vDSOs as lines."""
    method = str(vdso.get("method", "unknown"))
    lines = _wrapped(f"{method}: {METHODS.get(method, 'how CRIU treats it is not known.')}")
    symbols: Sequence[Mapping[str, Any]] = vdso.get("symbols", ())
    changed = [s for s in symbols if s.get("change") != "same"]
    if changed:
        for line in table([("FUNCTION", "BITS", "CHANGE")] + [_symbol(s) for s in changed], right=(1,)):
            lines.append(line)
        for text in dict.fromkeys(str(s["effect"]) for s in changed if s.get("effect")):
            names = ", ".join(dict.fromkeys(str(s["name"]) for s in changed if s.get("effect") == text))
            lines += _wrapped(f"{names}: {text}")
    same = len(symbols) - len(changed)
    if symbols:
        lines.append(
            f"unchanged: {_count(same, 'other function')}" if changed else "all functions are the same"
        )
    return lines + _bullets(str(finding) for finding in vdso.get("findings", ()))


def _symbol(symbol: Mapping[str, Any]) -> tuple[str, ...]:
    severity = str(symbol.get("severity", "none"))
    change = str(symbol["change"]) + ("" if severity == "none" else f", {severity}")
    return str(symbol["name"]), str(symbol["bits"]), change


def _affected(containers: Iterable[ContainerReport], symbols: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return who meets what: programs that were not started anew, and threads that were inside."""
    restored = [c for c in containers if c.outcome is ContainerOutcome.RESTORED]
    lines = []
    for severity, what in (("unsafe", "may crash or compute nonsense"), ("degraded", "answers less well")):
        names = sorted({str(s["name"]) for s in symbols if s.get("severity") == severity})
        if names and restored:
            who = ", ".join(c.name for c in restored)
            lines += _wrapped(f"{who}: a program that goes on calling {', '.join(names)} {what}")
    for c in restored:
        if c.threads_in_vdso:
            action = f": {c.vdso_action}" if c.vdso_action else ""
            lines += _wrapped(f"{c.name}: {_count(c.threads_in_vdso, 'thread')} inside the vDSO{action}")
    return lines


def _next(report: Report) -> list[str]:
    if report.outcome is Outcome.UPGRADED:
        return []
    steps = []
    for c in report.not_restored():
        if c.outcome is ContainerOutcome.COLD_STARTED:
            steps.append(f"{c.name} was started from cold and has lost its memory: see that it works")
        else:
            command = START_COMMANDS.get(c.engine)
            how = command.format(c.name) if command else f"start it the way you did, with {c.engine}"
            steps.append(f"{c.name} does not run: {how}")
    for c in report.containers:
        if c.outcome is ContainerOutcome.RESTORED and c.reason:
            steps.append(
                f"{c.name} runs, but look at the reason above: if its memory is not complete, start it anew"
            )
    if report.outcome is Outcome.FAILED:
        steps.append("remove the reason above, then: seamless-upgrade check")
    steps.append("what happened: journalctl -u seamless-upgrade.service -u seamless-upgrade-restore.service")
    return _bullets(steps)


def table(rows: Sequence[tuple[str, ...]], right: Iterable[int] = ()) -> list[str]:
    """Return rows with their columns aligned; ``right`` are the columns aligned to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rights = set(right)
    return [
        "  ".join(
            c.rjust(w) if i in rights else c.ljust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))
        )
        for r in rows
    ]


def seconds(value: float) -> str:
    """Return a duration with as many digits as one wants to read."""
    if value < 0.0995:
        return f"{value * 1000:.0f} ms" if value >= 0.0095 or value == 0 else f"{value * 1000:.1f} ms"
    return f"{value:.2f} s" if value < 99.5 else f"{value:.0f} s"


def size(value: int) -> str:
    """Return a number of bytes in a binary unit."""
    if value < 1024:
        return f"{value} B"
    number = float(value)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        number /= 1024
        if number < 1023.5 or unit == "TiB":
            break
    return f"{number:.0f} {unit}" if number >= 9.95 else f"{number:.1f} {unit}"


def _bullets(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in _wrapped(text, "- ")]


def _wrapped(text: str, bullet: str = "") -> list[str]:
    return textwrap.wrap(
        text, WIDTH - 2, initial_indent=bullet, subsequent_indent="  ", break_on_hyphens=False
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _when(at: str) -> str:
    return at[:19].replace("T", " ")
