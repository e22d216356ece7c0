"""Evaluation: answers of a candidate, and a report of scores with intervals. `promote.gate` decides on it."""
