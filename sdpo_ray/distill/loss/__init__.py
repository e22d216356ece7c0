"""The loss of one optimizer step: formulas, teacher, drift from the base, gain of a personal policy."""
