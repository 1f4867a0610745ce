r"""Tells which regular expressions llama.cpp turns into a grammar that matches the same texts, and JSON at that.

It wants an anchor at each end, knows no classes such as `\d`, no look-around and no top-level alternative that the
anchors bind to, and takes what a negated class matches into the text as it is, quotation marks included. Source:
`_visit_pattern` of https://github.com/ggml-org/llama.cpp/blob/master/common/json-schema-to-grammar.cpp.
"""

import re

MAX_REPETITIONS = 2000
"""Repetitions from which llama.cpp refuses a grammar: `MAX_REPETITION_THRESHOLD` of its llama-grammar.cpp."""

_TOKEN = re.compile(
    r"""
    (?P<one>   [A-Za-z0-9 _:/@,;=~&%!'-]        # itself
             | \\[.()|{}*+?\[\]]               # escaped
             | \[ (?:[A-Za-z0-9]-[A-Za-z0-9] | [A-Za-z0-9 _.:/@,])+ \] )
  | (?P<open>  \( (?:\?:)? )
  | (?P<close> \) )
  | (?P<or>    \| )
  | (?P<times> [*+?] | \{ (?P<least>\d+) (?:,(?P<most>\d*))? \} )
    """,
    re.VERBOSE,
)


def is_plain(pattern: str) -> bool:
    """Return whether the grammar of `pattern` matches what `pattern` matches."""
    if not (pattern.startswith("^") and pattern.endswith("$")) or pattern.endswith("\\$"):
        return False
    depth, repeatable, place, end = 0, False, 1, len(pattern) - 1
    while place < end:
        token = _TOKEN.match(pattern, place, end)
        if token is None or not _follows(token, depth, repeatable=repeatable):
            return False
        depth += (token.lastgroup == "open") - (token.lastgroup == "close")
        repeatable = token.lastgroup in {"one", "close"}
        place = token.end()
    return depth == 0


def _follows(token: re.Match[str], depth: int, *, repeatable: bool) -> bool:
    if token["times"]:
        return repeatable and max(int(token["least"] or 0), int(token["most"] or 0)) < MAX_REPETITIONS
    if token["or"]:
        return depth > 0 and repeatable
    return not token["close"] or (depth > 0 and repeatable)
