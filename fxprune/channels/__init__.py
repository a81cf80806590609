"""Which channels of a graph are known, unused or tied, and what is left when they go."""
