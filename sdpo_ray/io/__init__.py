"""Files of a run: paths, atomic writes, locks, files that are followed while they change."""
