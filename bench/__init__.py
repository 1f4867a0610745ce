"""What a call costs beside raw aiohttp, LiteLLM and its Router, measured in one run: `python -m bench --help`.

To read it: `targets` says what is promised, `plans` what a mode measures, `cases/` what is called again and again,
`probes/` what is measured otherwise, `measure` what one cell is. `runner` starts `stub`, `postgres` and a `child` a
home, and clears up; `records` keeps a run, `blocks`, `sizing` and `plot` show it, `report` puts it into the documents.
"""
