"""Interactions to a candidate policy, by one SDPO update.

The letters of the paper stay in this package: x is the prompt as it was served, y the response, o the
follow-up, and (x, o) the same prompt with the follow-up written into its last user message.
"""
