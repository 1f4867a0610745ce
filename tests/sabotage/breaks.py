"""Every break: one small change for each promise, and the tests that must notice it."""

from tests.sabotage.agent_breaks import AGENT_BREAKS
from tests.sabotage.budget_breaks import BUDGET_BREAKS
from tests.sabotage.cache_breaks import CACHE_BREAKS
from tests.sabotage.call_breaks import CALL_BREAKS
from tests.sabotage.cassette_breaks import CASSETTE_BREAKS
from tests.sabotage.checked_breaks import CHECKED_BREAKS
from tests.sabotage.command_breaks import COMMAND_BREAKS
from tests.sabotage.config_breaks import CONFIG_BREAKS
from tests.sabotage.doctor_breaks import DOCTOR_BREAKS
from tests.sabotage.durable_breaks import DURABLE_BREAKS
from tests.sabotage.executor_breaks import EXECUTOR_BREAKS
from tests.sabotage.gate_breaks import GATE_BREAKS
from tests.sabotage.guard_breaks import GUARD_BREAKS
from tests.sabotage.ledger_breaks import LEDGER_BREAKS
from tests.sabotage.patch import Break
from tests.sabotage.postgres_breaks import POSTGRES_BREAKS
from tests.sabotage.provider_breaks import PROVIDER_BREAKS
from tests.sabotage.rate_breaks import RATE_BREAKS
from tests.sabotage.resumed_breaks import RESUMED_BREAKS
from tests.sabotage.schema_breaks import SCHEMA_BREAKS
from tests.sabotage.spool_breaks import SPOOL_BREAKS
from tests.sabotage.stage_breaks import STAGE_BREAKS
from tests.sabotage.stream_breaks import STREAM_BREAKS
from tests.sabotage.telemetry_breaks import TELEMETRY_BREAKS
from tests.sabotage.text_breaks import TEXT_BREAKS
from tests.sabotage.usage_breaks import USAGE_BREAKS
from tests.sabotage.weights_breaks import WEIGHTS_BREAKS
from tests.sabotage.wire_breaks import WIRE_BREAKS

BREAKS: tuple[Break, ...] = (
    *LEDGER_BREAKS, *CACHE_BREAKS, *TEXT_BREAKS, *EXECUTOR_BREAKS,
    *POSTGRES_BREAKS, *SPOOL_BREAKS, *CALL_BREAKS, *WIRE_BREAKS, *STREAM_BREAKS, *GATE_BREAKS, *GUARD_BREAKS,
    *CHECKED_BREAKS,
    *SCHEMA_BREAKS,
    *STAGE_BREAKS,
    *AGENT_BREAKS,
    *DURABLE_BREAKS,
    *CONFIG_BREAKS,
    *PROVIDER_BREAKS,
    *USAGE_BREAKS,
    *WEIGHTS_BREAKS,
    *RESUMED_BREAKS,
    *BUDGET_BREAKS,
    *DOCTOR_BREAKS,
    *CASSETTE_BREAKS,
    *RATE_BREAKS,
    *TELEMETRY_BREAKS,
    *COMMAND_BREAKS,
)  # fmt: skip
