# SPDX-License-Identifier: MIT
"""The verbs and their options."""

import argparse
import os
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NoReturn

from upgrade import VERSION

# For users; those that only units call are not listed.
VERBS = (
    *("check", "run", "restore", "status", "report", "history", "abort", "recover"),
    *("prepare", "unprepare", "rehearse", "bench"),
)

_EXIT_STATUSES = """exit status:
  0 done or nothing to do      1 failed, host unchanged or rolled back
  2 usage or configuration     3 refused by the checks
  4 not privileged             5 upgraded, but a container was not restored
  6 a dependency is missing  130 interrupted
"""

Function = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """Answers wrong usage with our exit status, and as JSON where that was asked for."""

    as_json = False

    def error(self, message: str) -> NoReturn:
        from upgrade.cli import fail
        from upgrade.errors import UsageError

        self.exit(fail(UsageError(message, hint=f"{self.prog} --help"), as_json=self.as_json))


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the options; ends the process for ``--help``, ``--version`` and wrong usage."""
    Parser.as_json = "--json" in words
    return _parser().parse_args(_with_verb(words))


def _with_verb(words: Sequence[str]) -> list[str]:
    """Return the words with ``run`` in front where options alone were given."""
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help", "--version"):
        return ["run", *words]
    return list(words)


def _parser() -> Parser:
    top = Parser(
        prog="seamless-upgrade",
        description="Replace the kernel of this container host without restarting the containers.",
        epilog="Options without a verb mean 'run'.\n\n" + _EXIT_STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"seamless-upgrade {VERSION}")
    verbs = top.add_subparsers(metavar="VERB", required=True)
    check = _verb(verbs, "check", "would this upgrade work? Touches nothing")
    _upgrade_options(check)
    _check_options(check)
    run = _verb(verbs, "run", "upgrade the kernel")
    _upgrade_options(run)
    run.add_argument("--dry-run", action="store_true", help="the same as check")
    _check_options(run, hidden=True)
    run.add_argument("--yes", action="store_true", help="do not ask")
    _verb(verbs, "restore", "restore the containers (called by the unit in the new kernel)")
    status = _verb(verbs, "status", "what happens now, or happened last")
    status.add_argument("--wait", action="store_true", help="return when the upgrade has ended")
    report = _verb(verbs, "report", "the report of an upgrade")
    report.add_argument("id", nargs="?", metavar="ID", help="which one (default: the newest)")
    history = _verb(verbs, "history", "the kernels of this host")
    history.add_argument("--record", choices=("boot", "shutdown"), help=argparse.SUPPRESS)
    _verb(verbs, "abort", "stop a running upgrade before its jump and undo it")
    prepare = _verb(verbs, "prepare", "make this host ready: set memory aside, enable the units")
    prepare.add_argument(
        "--memory",
        metavar="SIZE|PERCENT",
        help="for the containers' page frames, as 8G or 25%% (default: see docs/prepare.md)",
    )
    prepare.add_argument("--dry-run", action="store_true", help="change nothing, say what would be done")
    unprepare = _verb(verbs, "unprepare", "take back what prepare did")
    unprepare.add_argument("--dry-run", action="store_true", help="change nothing, say what would be done")
    _verb(verbs, "execute", "carry out the request (called by the unit)")
    _verb(verbs, "frames", "bring the frames ranges online (called by the unit)")
    _verb(verbs, "pages", "bring the restored containers' memory (called by the unit)")
    _verb(verbs, "cold", "start the containers that an upgrade has stopped (called by the unit)")
    _verb(verbs, "recover", "undo what is left of an upgrade that did not jump")
    _rehearse_options(_verb(verbs, "rehearse", "try an upgrade in a virtual machine"))
    _bench_options(_verb(verbs, "bench", "compare ways to replace a kernel, in virtual machines"))
    return top


def _verb(verbs: "argparse._SubParsersAction[Parser]", name: str, text: str) -> Parser:
    extra: Any = {"help": text} if name in VERBS else {}
    verb = verbs.add_parser(name, description=text, **extra)
    if name == "rehearse":
        verb.add_argument("--json", metavar="FILE", help="write the result as JSON (- for standard output)")
    else:
        verb.add_argument("--json", action="store_true", help="answer as JSON")
    verb.add_argument(
        "--debug", action="store_true", default=bool(os.environ.get("DEBUG")), help=argparse.SUPPRESS
    )
    verb.set_defaults(function=_function(name))
    return verb


def _function(name: str) -> Function:
    """Return the verb's function; its module is imported when it is called."""

    def call(options: argparse.Namespace) -> int:
        return int(import_module(f"upgrade.cli.{name}").main(options))

    return call


def _upgrade_options(verb: Parser) -> None:
    verb.add_argument(
        "--kernel",
        metavar="VMLINUZ",
        help="the kernel to enter: an image or an installed version (default: the newest that does not run)",
    )
    verb.add_argument("--initrd", metavar="FILE", help="its initrd (default: the one beside it)")
    verb.add_argument(
        "--append", metavar="ARGS", default="", help="more arguments for the new kernel's command line"
    )
    verb.add_argument(
        "--container",
        metavar="NAME",
        action="append",
        default=[],
        help="preserve this container of podman, crun or runc",
    )
    verb.add_argument(
        "--cgroup", metavar="PATH", action="append", default=[], help="preserve the task tree in it"
    )
    verb.add_argument(
        "--unit", metavar="SERVICE", action="append", default=[], help="preserve this service of systemd"
    )
    verb.add_argument(
        "--all", action="store_true", help="preserve every running container of podman, crun and runc"
    )
    verb.add_argument(
        "--cold",
        choices=("docker",),
        action="append",
        default=[],
        help="stop the containers of this engine before the jump, and start them after it",
    )
    verb.add_argument(
        "--pages",
        choices=("auto", "in-place", "copy"),
        default="auto",
        help="keep page frames in place, or copy pages (default: in place where a range was set aside for it)",
    )
    verb.add_argument(
        "--no-gather",
        dest="gather",
        action="store_false",
        help="copy what does not lie in the range for page frames, instead of moving it there before the freeze",
    )
    verb.add_argument(
        "--verify",
        choices=("sample", "frames"),
        default="sample",
        help="compare a random choice of the memory that stays in place with its digests, or all of it",
    )
    verb.add_argument(
        "--restore",
        choices=("auto", "eager", "lazy"),
        default="auto",
        help="bring memory back before the containers run, or while they do",
    )
    verb.add_argument(
        "--clocks",
        choices=("pause", "run"),
        help="the containers' monotonic clocks pause in the downtime (default), or count it",
    )
    verb.add_argument(
        "--no-quiesce", dest="quiesce", action="store_false", help="leave other services running"
    )


def _check_options(verb: Parser, *, hidden: bool = False) -> None:
    def text(what: str) -> str:
        return argparse.SUPPRESS if hidden else what

    for option, what in (("--only", "only these checks"), ("--skip", "all but these")):
        verb.add_argument(
            option, metavar="ID", action="append", default=[], help=text(f"{what}: an id or a family")
        )
    verb.add_argument(
        "--probe",
        action="store_true",
        help=text("dump each container as well, and let it go: proves it, at the price of a short freeze"),
    )
    verb.add_argument("--list", action="store_true", help=text("name all checks, and end"))


def _rehearse_options(verb: Parser) -> None:
    verb.add_argument(
        "--from", dest="kernel_from", metavar="K", required=True, help="suite, version or vmlinuz"
    )
    verb.add_argument("--to", dest="kernel_to", metavar="K", required=True, help="suite, version or vmlinuz")
    verb.add_argument(
        "--workload", metavar="DIR", action="append", required=True, help="may be given several times"
    )
    verb.add_argument("--memory", metavar="MIB", type=int, help="the machine's memory")
    verb.add_argument(
        "--frames",
        metavar="MIB",
        type=int,
        help="its range for page frames (default: large enough; 0: none, pages are copied)",
    )
    verb.add_argument(
        "--append", metavar="ARGS", default="", help="more arguments for the new kernel's command line"
    )
    verb.add_argument("--rounds", metavar="N", type=int, default=1, help="upgrade so often, to and fro")
    verb.add_argument("--keep", action="store_true", help="leave the machine running")


def _bench_options(verb: Parser) -> None:
    verb.add_argument(
        "--from", dest="kernel_from", metavar="K", default="trixie", help="suite, version or vmlinuz"
    )
    verb.add_argument("--to", dest="kernel_to", metavar="K", help="default: the same kernel")
    verb.add_argument("--quick", action="store_true", help="one small row, once")
    verb.add_argument("--memory", metavar="MIB,...", help="memory of a container")
    verb.add_argument("--containers", metavar="N,...", help="how many of them")
    verb.add_argument("--rounds", metavar="N", type=int, help="how often to measure each mode")
    verb.add_argument("--modes", metavar="MODE,...", help="only these")
    verb.add_argument(
        "--clock",
        choices=("auto", "instructions", "host"),
        default="auto",
        help="what time is in the machine (default: counted instructions, unless there is KVM)",
    )
    verb.add_argument(
        "--output", metavar="FILE", default="bench.html", help="the page; the JSON lies beside it"
    )
    verb.add_argument("--resume", action="store_true", help="measure only what that JSON does not hold yet")
    verb.add_argument("--render", metavar="JSON", help="measure nothing: make the page of this result")
