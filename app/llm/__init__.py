"""The routing layer's only door."""
