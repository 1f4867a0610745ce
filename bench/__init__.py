"""What a call costs beside raw aiohttp, LiteLLM and its Router, measured in one run: `python -m bench --help`."""
