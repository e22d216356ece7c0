"""Capture: record answered chat requests and feedback as redacted events of the log."""
