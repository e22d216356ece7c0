"""The Ray Serve application that serves the policy: vLLM behind OpenAI's API."""
