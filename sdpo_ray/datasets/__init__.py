"""Conversation logs from other systems: import, conversion, export."""
