"""Verbs for `ray job submit`: each parses its command line, imports, and calls."""
