"""OpenTelemetry: statements, transactions and waits as spans, what is wrong as spans and events, and the metrics.

Imported only where `Settings.telemetry` asks for it; the extra `otel` has the API, the SDK is the application's choice.

How it works:

- **Statement spans** are made by a second wrapper around the dialect's methods, outside of the probe's own
  (`statements.py`). Without telemetry there is no such wrapper, so it costs nothing where it is off. The span is made
  before the driver is called and is current while it works: spans of the driver's own instrumentation nest below.
- **Late spans** (`late.py`). Below a sampled span the SDK's own samplers and processors have nothing to say to a
  statement's beginning. There the SDK hears of the span only when it has ended, which costs half as much; whatever is
  set up differently, and a span of which somebody has more to say, is the SDK's from its beginning (`spans.py`).
- **Folding.** A statement's span is not ended with the statement, but held by its connection (`connection.py`). The
  same statement from the same line below the same span goes on with it: it becomes current once more, and its number
  is counted. Held spans end with the transaction, with the connection's return, after a second without more of the
  same, when their connection is lost, at `uninstall()` and at the end of the process. Their time is that from the
  first to the last statement. The rows of a streamed result are counted into its span in the same way, up to its last
  fetch.
- **Levels.** `slow` makes a span when the statement is over and was slow or has failed, with the time of its
  beginning; `none` makes none. In a trace that was not sampled none is made, and with the metrics off nothing is done
  but to look at the current span.
- **Transactions** (opt-in) have a span from their first statement on. It is the parent of statements that were sent
  below the same span as the first one; it is current for nobody, because a transaction begins and ends anywhere.
- **Waits** for the pool are told when they are over; so are **findings**, when their scope is closed (`findings.py`),
  below the span in which the scope was opened, or in which its first statement was sent.
- **Metrics** (`metrics.py`) are recorded while the statement's span is current, so that they have it as an exemplar.
  Those of pools are read there whenever the SDK asks.
- **Enriching** (`enriching.py`) gives the attributes to the spans of another instrumentation, and makes none.

Values of parameters are in no attribute unless that is switched on, and neither are messages of the database, which
quote them: of an error there are its SQLSTATE and class.
"""

from sqla_watch.integrations.opentelemetry.engine import signals_of

__all__ = ["signals_of"]
