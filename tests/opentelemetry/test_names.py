"""Every name that is written is one of the installed conventions, or ours, and in the table of the documentation."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

from sqla_watch.integrations.opentelemetry import metrics, names

OURS = "sqla_watch."
ALL = {name: value for name, value in vars(names).items() if name.isupper()}
DOCUMENTATION = Path(__file__).parents[2] / "docs" / "opentelemetry.md"


def known(*packages: str) -> dict[str, str]:
    """The names that the conventions' package has, with the documentation of each."""
    found = {}
    for package in packages:
        path = importlib.import_module(f"opentelemetry.semconv.{package}").__path__
        for module in pkgutil.iter_modules(path):
            loaded = importlib.import_module(f"opentelemetry.semconv.{package}.{module.name}")
            source = Path(loaded.__file__ or "").read_text()
            for name, value in vars(loaded).items():
                if name.isupper() and isinstance(value, str):
                    found[value] = source.partition(f'{name}: Final = "{value}"\n"""')[2].partition('"""')[0]
    return found


def test_the_names_are_those_of_the_conventions() -> None:
    conventions = known("_incubating.attributes", "_incubating.metrics", "attributes", "metrics")
    for name in ALL.values():
        if not name.startswith(OURS):
            assert name in conventions, name
            assert "Deprecated" not in conventions[name], name


def test_what_is_not_said_to_be_in_development_is_stable() -> None:
    """The documentation lists the names that are no part of the stable conventions, with the reason."""
    stable = known("attributes", "metrics")
    unstable = {name for name in ALL.values() if name not in stable and not name.startswith(OURS)}
    text = DOCUMENTATION.read_text()
    _, _, listed = text.partition("## Names that are not stable")
    assert unstable
    for name in unstable:
        assert f"`{name}" in listed, name


def test_the_table_has_every_name() -> None:
    text = DOCUMENTATION.read_text()
    for name in ALL.values():
        assert f"`{name}" in text, name


def test_the_buckets_are_those_of_the_conventions() -> None:
    assert metrics.SECONDS == (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
