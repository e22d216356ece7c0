"""Show what an interaction teaches: per-token advantages as a page, pictures and a table."""
