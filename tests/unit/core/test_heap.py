"""The entrypoints' garbage collection: in a process of its own, for it changes the whole process."""

import subprocess
import sys

LOOK = """
import gc
from app.core.heap import THRESHOLDS, settle_heap
before = gc.get_freeze_count()
settle_heap()
assert gc.get_freeze_count() > 1000 > before == 0
assert gc.get_threshold() == THRESHOLDS
"""
LIBRARY = """
import gc
thresholds = gc.get_threshold()
import app.bootstrap, app.llm.service
assert (gc.get_freeze_count(), gc.get_threshold()) == (0, thresholds)
"""


def _run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=50, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_what_start_up_made_is_collected_no_more():
    _run(LOOK)


def test_the_library_leaves_the_collector_of_its_host_alone():
    _run(LIBRARY)
