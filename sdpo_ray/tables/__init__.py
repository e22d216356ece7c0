"""The Delta tables of a run: schemas, appends, reads, upkeep, erasure."""
