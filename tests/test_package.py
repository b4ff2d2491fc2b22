"""The package's names: all there, and imported when somebody asks for them."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sqla_watch
from sqla_watch.detectors import RULES


def test_every_name_is_there() -> None:
    assert [name for name in sqla_watch.__all__ if not hasattr(sqla_watch, name)] == []
    assert set(sqla_watch.__all__) <= set(dir(sqla_watch))


def test_the_warning_of_every_rule_is_a_name_of_the_package() -> None:
    for rule in RULES.values():
        assert getattr(sqla_watch, rule.warning.__name__) is rule.warning


def test_any_other_name_is_the_usual_error() -> None:
    with pytest.raises(AttributeError, match="module 'sqla_watch' has no attribute 'instal'"):
        sqla_watch.instal  # type: ignore[attr-defined]


def test_the_package_alone_imports_no_sqlalchemy() -> None:
    """The pytest plugin is loaded in every run of pytest, also where nobody asks for it."""
    program = "import sys, sqla_watch; print(sorted({'sqlalchemy', 'rich', 'jinja2', 'pytest'} & sys.modules.keys()))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"
