"""Send the demo's traces to a real backend, Arize Phoenix, and read them back over its REST interface.

Usage: python .ci/backend.py PHOENIX, the path of its command, in an environment of its own. Exits with 1, and says why,
if a span is missing, has no parent where it should, or says something else than was sent.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from typing import Any

from sqla_watch.detectors import RULES

START_SECONDS = 120


def free_port() -> int:
    with socket.socket() as asking:
        asking.bind(("127.0.0.1", 0))
        return int(asking.getsockname()[1])


def read(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return json.load(answer)


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    sys.exit(f"Phoenix did not answer at {url}")


def spans_of(base: str) -> list[dict[str, Any]]:
    """Return all spans that Phoenix has."""
    found: list[dict[str, Any]] = []
    cursor: str | None = ""
    while cursor is not None:
        page = read(f"{base}/v1/projects/default/spans?limit=500" + (f"&cursor={cursor}" if cursor else ""))
        found += page["data"]
        cursor = page.get("next_cursor")
    return found


def said(span: dict[str, Any], name: str) -> Any:
    """Return an attribute, which Phoenix may have taken apart at its dots."""
    value: Any = span["attributes"]
    if name in value:
        return value[name]
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return None
        value = value[part]
    return value


def complaints(spans: list[dict[str, Any]]) -> list[str]:
    """Say what is wrong with the spans that came back."""
    by_id = {span["context"]["span_id"]: span for span in spans}
    wrong: list[str] = []

    def check(fact: object, complaint: str) -> None:
        if not fact:
            wrong.append(complaint)

    requests = [span for span in spans if span["name"].endswith((": mistake", ": repair"))]
    check(len(requests) > 40, f"{len(requests)} scenarios came back")
    findings = [span for span in spans if said(span, "sqla_watch.rule")]
    rules = {said(span, "sqla_watch.rule") for span in findings}
    check(rules <= set(RULES) and len(rules) > 20, f"rules that came back: {sorted(rules)}")
    for span in findings:
        rule = said(span, "sqla_watch.rule")
        check(span["name"] == f"sqla_watch.{rule.replace('-', '_')}", f"{rule} is named {span['name']}")
        check(said(span, "sqla_watch.suggestion"), f"{rule} has no suggestion")
    lazy = [span for span in findings if said(span, "sqla_watch.rule") == "n-plus-one"]
    check(lazy, "there is no finding of n-plus-one")
    for span in lazy:
        request = by_id.get(span["parent_id"] or "", {"name": "nothing", "events": []})
        check(request["name"].endswith(": mistake"), f"n-plus-one is below {request['name']}")
        check(span["name"] in [event["name"] for event in request["events"]], f"{request['name']} has no event of it")
        check("loader" in str(said(span, "sqla_watch.suggestion")) or "load(" in said(span, "sqla_watch.suggestion"),
              "n-plus-one suggests no loader option")  # fmt: skip
        check(said(span, "code.line.number"), "n-plus-one has no line")
    statements = [span for span in spans if said(span, "db.query.text")]
    check(len(statements) > 100, f"{len(statements)} statements came back")
    for span in statements:
        check(said(span, "db.system.name") == "postgresql", f"{span['name']} is of {said(span, 'db.system.name')}")
    folded = [said(span, "sqla_watch.statements") or 1 for span in statements]
    check(max(folded) >= 50, "no statements were folded")
    for request in requests:
        below = sum(span["context"]["trace_id"] == request["context"]["trace_id"] for span in spans)
        if request["name"].startswith("n-plus-one"):
            check(below < 20, f"{request['name']} has {below} spans")
    return list(dict.fromkeys(wrong))


def main(phoenix: str) -> int:
    port = free_port()
    base = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory(prefix="sqla_watch_") as folder:
        environment = {
            **os.environ,
            "PHOENIX_WORKING_DIR": folder,
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(port),
            "PHOENIX_GRPC_PORT": str(free_port()),
            "PHOENIX_TELEMETRY_ENABLED": "false",
        }
        with open(os.path.join(folder, "log"), "wb") as log:
            process = subprocess.Popen([phoenix, "serve"], env=environment, stdout=log, stderr=log)
            try:
                wait_for(f"{base}/healthz", process)
                command = [sys.executable, "-m", "sqla_watch", "demo", "--otlp", base]
                ran = subprocess.run(command, capture_output=True, text=True, timeout=600)
                if ran.returncode:  # that Phoenix takes no metrics is no fault: the exporter says it, and goes on
                    sys.exit(f"the demo failed:\n{ran.stdout[-2_000:]}{ran.stderr[-2_000:]}")
                spans: list[dict[str, Any]] = []
                for _ in range(60):  # it writes what it has taken a moment later
                    time.sleep(1)
                    before, spans = len(spans), spans_of(base)
                    if spans and len(spans) == before:
                        break
            finally:
                process.terminate()
                process.wait(30)
    wrong = complaints(spans)
    for complaint in wrong:
        print(f"Error: {complaint}", file=sys.stderr)
    names = {span["name"] for span in spans}
    print(f"{len(spans)} spans with {len(names)} names came back from Phoenix; {len(wrong)} complaints")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
