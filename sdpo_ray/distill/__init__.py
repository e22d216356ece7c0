"""Interactions to a candidate policy, by one SDPO update (arXiv 2603.12273).

This package keeps the paper's letters: x is the prompt as it was served, y the response, o the follow-up, (x, o) the
same prompt with the follow-up in its last user message, and A_t the advantage of response token t. Suffixes of tensors
name their axes: N scored tokens of a micro-batch, C those of one chunk, B sequences, S tokens in total, V vocabulary, D
hidden size, K top K.
"""
