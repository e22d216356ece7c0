"""The event log on a file system that replicas and jobs share."""
