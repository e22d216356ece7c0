"""A toy world with simulated users, so that the whole loop runs offline: questions, answers, and users with a taste.

Only `tiny_policy` imports torch and transformers.
"""
