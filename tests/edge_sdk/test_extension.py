"""Dotted names: what they load, and what the errors say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edge_sdk.errors import ConfigurationError
from edge_sdk.extension import is_dotted, load, make

OWN = """
class Rule:
    def __init__(self, bound=1.0):
        if bound < 0:
            raise ValueError("bound is negative")
        self.bound = bound
    def choose(self):
        return self.bound
    class Inner:
        pass

def made(bound=3.0):
    return Rule(bound)

ready = Rule(7.0)
number = 5
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "ext_own.py").write_text(OWN)
    (tmp_path / "ext_broken.py").write_text("1 / 0\n")
    (tmp_path / "ext_lacking.py").write_text("import no_such_module_anywhere\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "ext_own"


def test_a_dotted_name_loads_a_class_and_what_is_inside_it(own: str) -> None:
    assert load("selection.rule", f"{own}:Rule").__name__ == "Rule"
    assert load("selection.rule", f"{own}:Rule.Inner").__name__ == "Inner"
    assert is_dotted(f"{own}:Rule") and not is_dotted("uniform")


def test_a_class_a_function_and_an_object_are_made(own: str) -> None:
    assert make("k", f"{own}:Rule", {"bound": 2.0}, methods=("choose",)).choose() == 2.0
    assert make("k", f"{own}:made", methods=("choose",)).choose() == 3.0
    assert make("k", f"{own}:ready", methods=("choose",)).choose() == 7.0


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("uniform", "is not of the form package.module:Name"),
        ("a b:C", "is not of the form"),
        ("ext_own:", "is not of the form"),
        (":Rule", "is not of the form"),
        ("ext_nowhere:Rule", "there is no module 'ext_nowhere'; install"),
        ("ext_lacking:Rule", "ext_lacking imports 'no_such_module_anywhere', which is not installed"),
        ("ext_broken:Rule", "importing ext_broken fails with ZeroDivisionError: division by zero"),
        ("ext_own:Rull", "ext_own has no 'Rull'; it has Rule, made, number, ready"),
    ],
)
def test_an_error_names_the_setting_the_value_and_the_remedy(own: str, name: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load("selection.rule", name)
    assert str(caught.value).startswith(f"selection.rule: {name!r}") and says in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "says"),
    [
        ("ext_own:Rule", {"bund": 2.0}, "cannot be made with (bund=2.0): TypeError"),
        ("ext_own:Rule", {"bound": -1.0}, "ValueError: bound is negative"),
        ("ext_own:Rule.Inner", {}, "has no choose(): selection.rule needs choose"),
        ("ext_own:number", {}, "is int, not a class"),
    ],
)
def test_an_object_that_cannot_be_made_or_lacks_a_method_is_refused(
    own: str, name: str, settings: dict[str, float], says: str
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make("selection.rule", name, settings, methods=("choose",))
    assert str(caught.value).startswith(f"selection.rule: {name!r}") and says in str(caught.value)


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, edge_sdk.extension; print([m for m in ('numpy', 'msgpack', 'paho', 'ssl') if m in sys.modules])"
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert made.stdout.strip() == "[]"
