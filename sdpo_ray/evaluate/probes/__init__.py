"""The probes: one module each, which defines one `PROBE`. `evaluate.discovery` finds them."""
