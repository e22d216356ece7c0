"""The application that serves the policy: vLLM behind OpenAI's API, on Ray Serve."""
