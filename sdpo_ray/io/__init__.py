"""Files of a run: paths, atomic writes, locks, watched files, backups."""
