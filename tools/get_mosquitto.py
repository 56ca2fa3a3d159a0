"""Brings mosquitto to this machine for the tests: ``python tools/get_mosquitto.py``; does nothing where it is.

As root on Debian and its relatives it is installed by apt. Anybody else gets the same package unpacked below the
running interpreter's environment, with the shared libraries that the machine lacks and a wrapper in its ``bin`` that
``find_mosquitto`` knows. Without apt, or without a network, one line says what is missing; that is no error, because
the tests that need mosquitto skip then.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from device_sim.mosquitto import find_mosquitto

PACKAGE: Final = "mosquitto"
INSTALL_SECONDS_MAX: Final = 300.0
# Without a network each address is tried once and given up soon: a test run must not wait for it.
PATIENCE: Final = ("-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10", "-o", "Acquire::https::Timeout=10")
# LD_LIBRARY_PATH is set in here and nowhere else, so that nothing but this mosquitto sees the unpacked libraries.
WRAPPER: Final = """\
#!/bin/sh
LD_LIBRARY_PATH="{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}" exec "{program}" "$@"
"""


class CannotGet(Exception):
    """A way to get mosquitto does not work here; the text says why."""


def main() -> None:
    """Says in one line what was done, or what is missing; succeeds in both cases."""
    if find_mosquitto() is not None:
        return
    try:
        get()
        print(f"mosquitto: {find_mosquitto()}")
    except CannotGet as problem:
        print(f"mosquitto: {problem}; tests that need it skip (or fail, where CI is set) until it is on the PATH")


def get() -> None:
    """Installs or unpacks it; raises CannotGet."""
    if shutil.which("apt-get") is None:
        raise CannotGet("this machine has no apt-get to bring it")
    if os.geteuid() == 0:
        install()
    elif shutil.which("dpkg-deb") is None:
        raise CannotGet("this machine has no dpkg-deb to unpack it")
    elif sys.prefix == sys.base_prefix:
        raise CannotGet("it is unpacked into a virtual environment only")
    else:
        unpack(Path(sys.prefix))
    if find_mosquitto() is None:
        raise CannotGet("apt-get has brought a package without the program")


def install() -> None:
    """Installs the package, with fresh lists where those of the machine are absent or outdated."""
    command = ("install", "-qq", "--yes", "--no-install-recommends", PACKAGE)
    try:
        apt(*command)
    except CannotGet:
        apt("update", "-qq")
        apt(*command)


def unpack(environment: Path) -> None:
    """Unpacks the package and what it lacks into ``environment``/mosquitto, and writes the wrapper last."""
    root, wrapper = environment / "mosquitto", environment / "bin" / "mosquitto"
    shutil.rmtree(root, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix="mosquitto-") as temporary:
        for package in download(Path(temporary)):
            run("dpkg-deb", "-x", str(package), str(root))
    program = root / "usr" / "sbin" / "mosquitto"
    folders = sorted({str(library.parent) for library in root.rglob("*.so*")})
    unproved = wrapper.with_suffix(".new")
    unproved.write_text(WRAPPER.format(libraries=":".join(folders), program=program))
    unproved.chmod(0o755)
    # It prints its version and ends with an error by design; without a library it would not come so far.
    said = subprocess.run([unproved, "-h"], capture_output=True, text=True, check=False)
    if not said.stdout.startswith("mosquitto version"):
        unproved.unlink()
        raise CannotGet(f"the unpacked program does not run ({last_line(said.stderr)})")
    unproved.replace(wrapper)


def download(folder: Path) -> list[Path]:
    """The package and the packages that it needs and the machine lacks, as files in ``folder``."""
    try:
        return download_by(folder, ())
    except CannotGet:
        # The machine's lists are absent or outdated, and only root may renew them: we fetch our own.
        lists = folder / "lists"
        (lists / "partial").mkdir(parents=True)
        cache = folder / "cache"
        (cache / "archives" / "partial").mkdir(parents=True)
        options = ("-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}", "-o", "Debug::NoLocking=1")
        apt(*options, "update", "-qq")
        return download_by(folder, options)


def download_by(folder: Path, options: tuple[str, ...]) -> list[Path]:
    plan = apt(*options, "install", "--simulate", "--no-install-recommends", PACKAGE)
    lacking = {words[1] for line in plan.splitlines() if (words := line.split()) and words[0] == "Inst"}
    apt(*options, "download", "-qq", *sorted(lacking | {PACKAGE}), folder=folder)
    return sorted(folder.glob("*.deb"))


def apt(*arguments: str, folder: Path | None = None) -> str:
    return run("apt-get", *PATIENCE, *arguments, folder=folder)


def run(*command: str, folder: Path | None = None) -> str:
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
    name = next((word for word in command if word in ("update", "install", "download")), "")
    name = f"{command[0]} {name}".strip()
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS_MAX,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        raise CannotGet(f"{name} failed ({last_line(error.stderr)})") from None
    except subprocess.TimeoutExpired:
        raise CannotGet(f"{name} took longer than {INSTALL_SECONDS_MAX:g} s") from None
    return done.stdout


def last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"


if __name__ == "__main__":
    main()
