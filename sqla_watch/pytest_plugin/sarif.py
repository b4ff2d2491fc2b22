"""SARIF 2.1.0: findings for code scanning, each once, at the line that causes it.

Paths are relative to the repository, fingerprints are made of identities, and what the baseline knows is suppressed.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Collection, Iterable, Mapping
from typing import Any
from urllib.parse import quote

import sqla_watch
from sqla_watch.detectors import RULES
from sqla_watch.pytest_plugin.grouped import FoundInTests, found_in_tests
from sqla_watch.pytest_plugin.outcome import Outcome

__all__ = ["document"]

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
ROOT = "%SRCROOT%"
MOST_TESTS = 20
"""Tests that are named with one finding."""

_LEVELS = {"high": "error", "medium": "warning", "low": "note"}


def document(outcomes: Iterable[Outcome], *, known: Collection[str] = ()) -> dict[str, Any]:
    """Return the SARIF document of a run.

    Args:
        outcomes: Of all tests that were run.
        known: Identities of findings that are in the baseline; they are there as suppressed.

    Example::

        Path("sqla_watch.sarif").write_text(json.dumps(document(outcomes)), encoding="utf-8")
    """
    found = sorted(found_in_tests(outcomes), key=lambda each: each.identity)
    rules = sorted({each.finding["rule"] for each in found})
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "sqla_watch",
                        "version": sqla_watch.__version__,
                        "semanticVersion": sqla_watch.__version__,
                        "rules": [_rule(rule) for rule in rules],
                    }
                },
                "originalUriBaseIds": {ROOT: {"description": {"text": "The root of the source code."}}},
                "columnKind": "unicodeCodePoints",
                "results": [_result(each, rules.index(each.finding["rule"]), each.identity in known) for each in found],
            }
        ],
    }


def _rule(rule: str) -> dict[str, Any]:
    """Return what is known of a rule, with its page as Markdown."""
    if rule not in RULES:  # of a later version, by a worker
        return {"id": rule}
    documentation = inspect.cleandoc(RULES[rule].__doc__ or "")
    first, _, rest = documentation.partition("\n")
    return {
        "id": rule,
        "name": RULES[rule].warning.__name__.removesuffix("Warning"),
        "shortDescription": {"text": first},
        "fullDescription": {"text": inspect.cleandoc(RULES[rule].warning.__doc__ or first)},
        "help": {"text": documentation, "markdown": f"# {rule}\n\n{first}\n{rest}"},
        "properties": {"tags": ["sqlalchemy", "performance"]},
    }


def _result(each: FoundInTests, rule: int, known: bool) -> dict[str, Any]:
    finding = each.finding
    text = f"{finding['message']}\n\n{finding['suggestion']}".strip()
    related = [
        {"id": number, "message": {"text": other["role"]}, **_location(other, other["shown"])}
        for number, other in enumerate(_related(each), 1)
    ]
    return {
        "ruleId": finding["rule"],
        "ruleIndex": rule,
        "level": _LEVELS[finding["severity"]],
        "message": {"text": text},
        "locations": [_place(each)],
        **({"relatedLocations": related} if related else {}),
        "partialFingerprints": {
            "sqlaWatchIdentity/v1": hashlib.sha256(each.identity.encode("utf-8", "surrogatepass")).hexdigest()
        },
        **(
            {"suppressions": [{"kind": "external", "status": "accepted", "justification": "It is in the baseline."}]}
            if known
            else {"suppressions": []}
        ),
        "properties": {
            "target": finding["target"],
            "tests": [test.nodeid for test in each.tests[:MOST_TESTS]],
            "testsInAll": len(each.tests),
            "statements": each.statements,
            "databaseSeconds": round(each.database_seconds, 6),
            "failsTests": each.failing,
        },
    }


def _related(each: FoundInTests) -> list[Mapping[str, Any]]:
    """Return other lines of a finding that are in the same repository: how theirs are relative is told by its own."""
    location = each.finding["location"]
    if location is None:
        return []
    file = location["file"].replace("\\", "/")
    if not file.endswith(each.finding["file"]):
        return []
    root = file.removesuffix(each.finding["file"])
    return [
        {**other, "shown": other["file"].replace("\\", "/").removeprefix(root)}
        for other in each.finding["related"]
        if root and other["file"].replace("\\", "/").startswith(root)
    ]


def _place(each: FoundInTests) -> dict[str, Any]:
    """Return the line that causes a finding; of one without, the test in which it was found first."""
    location = each.finding["location"]
    if location is None:
        test = each.tests[0]
        return _location({"line": test.line, "function": ""}, test.file)
    return _location(location, each.finding["file"])


def _location(place: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Return a line of a file, and the function that it is in."""
    installed = "site-packages" in place.get("file", "")
    made: dict[str, Any] = {
        "physicalLocation": {
            "artifactLocation": _artifact(file, installed),
            "region": {"startLine": max(place["line"], 1)},
        }
    }
    if place["function"]:
        made["logicalLocations"] = [{"name": place["function"], "kind": "function"}]
    return made


def _artifact(file: str, installed: bool) -> dict[str, str]:
    """Return a file as a URI: relative to the root of the source code, or absolute where it lies outside of it.

    What is installed is relative to a folder that is another one on each machine.
    """
    path = file.replace("\\", "/")
    written = quote(path.encode("utf-8", "surrogateescape"), safe="/~!$&'()*+,;=@")
    if path.startswith("/"):
        return {"uri": f"file://{written}"}
    if path[1:3] == ":/":
        return {"uri": f"file:///{written}"}
    return {"uri": written} if installed else {"uri": written, "uriBaseId": ROOT}
