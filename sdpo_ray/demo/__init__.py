"""The demonstration of the whole loop on one machine."""
