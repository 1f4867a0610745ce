"""Schemas as each provider can be told them: what of a JSON schema is sent, and what of it is lost.

The request keeps its own schema, which is what is fingerprinted, stored and validated against; what is sent instead
is made here, once, for the schema of an answer and for the parameters of tools.
"""

from app.llm.schemas.dialects import SchemaDialect
from app.llm.schemas.fitting import Fitted, Misfit, fit
from app.llm.schemas.requests import Dialects, Loss, SchemaMismatch, fitted, in_dialects, losses, most_bytes

__all__ = [
    "Dialects",
    "Fitted",
    "Loss",
    "Misfit",
    "SchemaDialect",
    "SchemaMismatch",
    "fit",
    "fitted",
    "in_dialects",
    "losses",
    "most_bytes",
]
