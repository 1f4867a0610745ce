"""Signalbox: model calls routed for a stated reason, recorded in your own database, replayable."""
