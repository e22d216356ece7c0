"""Who comes in, for how much and how long, and what those who run the service see of it; never what was said."""
