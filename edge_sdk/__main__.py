"""``edge-device``: take part in a federation, or find out why that would not work, without writing code."""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from edge_sdk import __version__
from edge_sdk.cli.findings import EXIT_BROKER, EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK, EXIT_STATE, exit_code
from edge_sdk.errors import ConfigurationError, EdgeFedError, StateError

__all__ = ["main"]

PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}  # syslog's, as journald reads them


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit code.

    Codes: 0 all is well, 1 something else failed, 2 the configuration is wrong, 3 the broker cannot be used (``check``
    only: ``run`` waits for it), 4 the state directory cannot be used.
    """
    options = _parser().parse_args(arguments)
    _log_to_stderr(logging.DEBUG if options.verbose else logging.INFO if options.command == "run" else logging.ERROR)
    try:
        if options.command == "run":
            return _run(options)
        return _check(options)
    except ConfigurationError as error:
        return _failed(error, EXIT_CONFIGURATION)
    except StateError as error:
        return _failed(error, EXIT_STATE)
    except EdgeFedError as error:
        return _failed(error, EXIT_FAILED)


def _run(options: argparse.Namespace) -> int:
    from edge_sdk.cli.device_config import load_device_config
    from edge_sdk.cli.run import run

    run(load_device_config(options.config, os.environ), os.environ)
    return EXIT_OK


def _check(options: argparse.Namespace) -> int:
    from edge_sdk.cli.check import checks
    from edge_sdk.cli.device_config import load_device_config

    findings = []
    for finding in checks(load_device_config(options.config, os.environ)):
        findings.append(finding)
        if not options.json:
            print(finding, flush=True)
    code = exit_code(findings)
    if options.json:
        listed = [{name: value for name, value in asdict(f).items() if name != "code"} for f in findings]
        print(json.dumps({"ok": code == EXIT_OK, "exit_code": code, "findings": listed}, indent=2))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-device",
        description="Take part in a federation as a device.",
        epilog=f"Exit codes: 0 well, {EXIT_FAILED} failed, {EXIT_CONFIGURATION} configuration, "
        f"{EXIT_BROKER} broker (check), {EXIT_STATE} state directory.",
    )
    parser.add_argument("--version", action="version", version=f"edgefed {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="take part until SIGTERM or SIGINT", description="Take part in a federation.")
    check = commands.add_parser(
        "check",
        help="find out what would not work",
        description="Look at configuration, data, disk, clock, engines, broker and coordinator; say what to do.",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    for command in (run, check):
        command.add_argument("--config", type=Path, required=True, metavar="FILE", help="the device's device.toml")
        command.add_argument("--verbose", "-v", action="store_true", help="log more")
    return parser


def _log_to_stderr(level: int) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JournalFormatter() if "JOURNAL_STREAM" in os.environ else _PLAIN)
    logging.basicConfig(level=level, handlers=[handler])


class _JournalFormatter(logging.Formatter):
    """journald stamps the time itself, and reads the priority from the line (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        head = f"<{PRIORITIES.get(record.levelname, 6)}>"
        return "\n".join(head + line for line in super().format(record).splitlines())


_PLAIN = logging.Formatter("%(asctime)s %(levelname)-7s %(message)s")


def _failed(error: EdgeFedError, code: int) -> int:
    print(f"edge-device: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
