"""The garbage collector tuned for a process that serves calls: what start-up made is looked at no more.

LiteLLM leaves hundreds of thousands of objects behind that live as long as the process. A full collection visits them
all, and stops every call of the event loop for some 200 ms. This changes the whole process, so it is for those who own
it: the demo calls it, and a host application that serves many calls should; the library never does, nor do commands
that end after a call or two, for collecting once takes as long as it could save them.
"""

import gc

THRESHOLDS = (10_000, 20, 50)
"""Objects, young and middle collections between two collections of each generation; Python's are (700, 10, 10)."""


def settle_heap() -> None:
    """Collect what start-up left, exempt the rest from further collections; call it once, after the warm-up.

    Example:
        >>> settle_heap()
        >>> gc.get_freeze_count() > 0
        True
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
