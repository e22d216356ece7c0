"""Start, health and shutdown of one replica."""
