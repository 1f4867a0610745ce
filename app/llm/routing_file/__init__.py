"""The routing file: `LLM_CONFIG_FILE` as one source of the settings, each value with the line that it stands in."""

from app.llm.routing_file.origins import Origin, Origins
from app.llm.routing_file.source import RoutingFileSource

__all__ = ["Origin", "Origins", "RoutingFileSource"]
