"""One attempt on the wire: what leaves, what comes back, and which of our errors it is."""
