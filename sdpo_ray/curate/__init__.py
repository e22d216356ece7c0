"""Curation: ingest the event log, pair follow-ups, admit interactions, draw snapshots."""
