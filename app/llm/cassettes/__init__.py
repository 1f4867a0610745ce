"""Calls of tests, recorded once and replayed ever after without a socket."""
