"""A candidate's answers become a report: scores with intervals, never a verdict."""
