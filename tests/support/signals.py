"""What a program under test must heed, whatever this run was started by."""

import signal


def heed_ctrl_c() -> None:
    """Let a new process heed Ctrl-C: a shell without job control lets its background jobs ignore it, and their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
