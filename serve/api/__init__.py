"""OpenAI's API around vLLM's own: what may be asked, and what a reply promises."""
