"""People and a world for them, so that the whole loop runs offline: questions, answers, users with a taste.

`world` and `users` need the standard library alone; torch and transformers enter in `tiny_policy` only.
"""
