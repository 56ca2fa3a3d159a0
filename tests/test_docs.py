"""What the documents say is true: their links, their commands, their configuration, and the program in the README."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from coordinator.config import load_config
from device_sim.scenario import Scenario, run

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
MODULES = {"edge-fleet": "device_sim", "edge-coordinator": "coordinator", "edge-device": "edge_sdk"}
GROUPS = ("codec",)
"""Commands that have commands of their own."""
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def commands() -> list[tuple[str, list[str]]]:
    found = []
    for page in PAGES:
        for text in blocks(page, "sh"):
            for line in text.splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] in MODULES:
                    found.append((f"{page.name}: {line}", words))
    return found


@lru_cache
def help_of(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", MODULES[words[0]], *words[1:], "--help"],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", "COLUMNS": "300", "TERM": "dumb", "NO_COLOR": "1"},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(("where", "words"), commands(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_in_the_documents_exists_with_its_options(where: str, words: list[str]) -> None:
    command = words[: 3 if words[1] in GROUPS else 2]
    text = help_of(*command)
    for option in (word.partition("=")[0] for word in words[len(command) :] if word.startswith("--")):
        assert option in text, f"{where}: {' '.join(command)} has no {option}"


def test_make_has_the_targets_that_the_documents_name() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {t for page in PAGES for t in re.findall(r"^(?:make|.*`make) ([a-z-]+)", page.read_text(), re.MULTILINE)}
    assert named and named <= targets


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_federations_in_the_documents_are_valid(tmp_path: Path) -> None:
    found = 0
    for page in PAGES:
        for text in blocks(page, "toml"):
            if "[federation]" in text and "[model]" in text:
                path = tmp_path / "federation.toml"
                path.write_text(text)
                load_config(path)
                found += 1
    assert found >= 2


def test_python_in_the_documents_compiles() -> None:
    found = [(page.name, text) for page in PAGES for text in blocks(page, "python")]
    assert len(found) >= 3
    for name, text in found:
        compile(text, name, "exec")


def test_the_readme_names_every_room_that_the_architecture_lists() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    tree = text.split("```")[1]
    room = ""
    for line in tree.splitlines():
        words = line.split("  ")[0 if not line.startswith("  ") else 1]
        if line and not line.startswith(" "):
            room = words.strip().split()[0]
            continue
        for name in (n.strip() for n in words.split(",")):
            if name and name != "...":
                assert (ROOT / room / name).exists(), f"ARCHITECTURE.md names {room}{name}"


def test_the_scenario_of_the_fleet_page_runs() -> None:
    outcome = run(Scenario(devices=20, rounds=4, goal_count=6), 7)
    assert len(outcome.rounds) == 4
