"""OpenAI's API around vLLM's app: what a request may contain, and what a response promises."""
