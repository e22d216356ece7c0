"""Outermost layer: authentication, limits on rates, sizes and times; metrics, access log and traces."""
