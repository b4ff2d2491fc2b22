"""The panel in the application and the report in a file: the last requests, each with findings and a waterfall.

Scopes as dictionaries go in, pages come out. The panel is a development tool: whoever may see it sees the
application's SQL and lines of code. What of a page comes from the application is escaped, cut to a length, and shown
with every character visible.
"""

from sqla_watch.panel.errors import PanelError
from sqla_watch.panel.panel import Panel, Response
from sqla_watch.panel.report import report_page

__all__ = ["Panel", "PanelError", "Response", "report_page"]
