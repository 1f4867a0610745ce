"""`signalbox metrics`: what the ledger holds, for Prometheus or for a look with a browser, without a service of yours."""

import asyncio
from typing import Annotated

import typer

from app.cli.faults import UsageFault
from app.cli.options import AsJson
from app.cli.output import emit, emit_json

DEFAULT_PORT = 9464
"""Where OpenTelemetry's exporter for Prometheus listens by default."""


def metrics(
    *,
    port: Annotated[
        int, typer.Option(min=0, max=65_535, metavar="N", help="TCP port; 0: any that is free.")
    ] = DEFAULT_PORT,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Address to listen on; others than this host's own let others read."
        ),
    ] = "127.0.0.1",
    as_json: AsJson = False,
) -> None:
    """Serve the numbers of the ledger at /metrics until Ctrl-C: runs, tokens, costs, savings, live runs, spool files.

    Each scrape counts the days that changed first, as `report` does: every 15 s or more is a good interval. What only a
    running service knows (queues, circuits, latencies) its own registry tells: `app.llm.metrics.PrometheusMetrics`.

    Example: signalbox metrics --port 9464
    """
    try:
        from app.cli.scraping import serve  # noqa: PLC0415  # its library is optional
    except ImportError:
        raise UsageFault("metrics need the extra `metrics`: pip install 'signalbox[metrics]'") from None

    def listening(url: str, database: str) -> None:
        if as_json:
            emit_json({"url": url, "database": database})
        else:
            emit(f"{url} tells of {database}; Ctrl-C ends it")

    asyncio.run(serve(host, port, listening))
