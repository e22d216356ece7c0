"""Admission: which answered turns with a reaction become interactions, and the reason when they do not."""
