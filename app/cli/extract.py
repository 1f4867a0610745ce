"""`signalbox extract`: text in, JSON that fits a schema out."""

import asyncio
from typing import Annotated

import typer

from app.cli.chat import Verbose, document, remark
from app.cli.options import AsJson, RequestOptions, with_request_options
from app.cli.output import emit_json, read_text


@with_request_options
def extract(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The text; `-` reads it from stdin.")],
    *,
    schema: Annotated[str, typer.Option(metavar="FILE", help="JSON Schema of an object.")],
    asked: RequestOptions,
    verbose: Verbose = False,
    as_json: AsJson = False,
) -> None:
    """Turn a text into JSON that fits a schema.

    The answer is validated; a model whose answer does not fit is told its faults and asked once more, then the next
    one is. Prints the data alone; `--json` puts it under "data", beside its provenance.

    Example: signalbox extract --schema invoice.json letter.txt
    """
    from app.cli import extraction  # noqa: PLC0415  # --help is fast
    from app.cli.schemas import load_schema  # noqa: PLC0415

    done = asyncio.run(extraction.extract(asked, load_schema(schema), read_text(file)))
    emit_json({"data": done.data, **document(done.response)} if as_json else done.data)
    remark(done.response, verbose=verbose)
