"""The log between serving and curation: durable, ordered, read by position."""
