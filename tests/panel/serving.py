"""A server for a panel, as small as can be; run as a program, one with a very large request.

Example::

    python -m tests.panel.serving different
"""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sqla_watch.panel import Panel
from tests.panel.examples import commit_for_each_row, many_statements

ROOT = "/__sqla_watch__"


class Served:
    """A panel on a port of its own."""

    def __init__(self, panel: Panel) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if not self.path.startswith(ROOT):  # browsers ask for /favicon.ico where a page names none
                    self.send_response(204)
                    self.end_headers()
                    return
                path, _, query = self.path.partition("?")
                headers = {name.lower(): value for name, value in self.headers.items()}
                answer = served.panel.respond(
                    self.command,
                    path.removeprefix(ROOT),
                    query,
                    headers,
                    self.client_address[0],
                    https=False,
                    root=ROOT,
                )
                self.send_response(answer.status)
                for name, value in answer.headers:
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, *arguments: Any) -> None:
                pass

        served = self
        self.panel = panel
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://localhost:{self._server.server_port}{ROOT}"

    def stop(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


LARGE = {
    "same": lambda: many_statements(5_000, different=False),
    "different": lambda: many_statements(5_000, different=True),
    "committed": lambda: commit_for_each_row(5_000),
}
"""Requests with 5,000 statements."""


def main() -> None:
    """Serve a large request, and say where, until somebody closes the input."""
    panel = Panel()
    panel.add(LARGE[sys.argv[1]]())
    served = Served(panel)
    print(served.url, flush=True)
    sys.stdin.read()
    served.stop()


if __name__ == "__main__":
    main()
