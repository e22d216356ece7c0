"""Renders chat requests with vLLM: `python -m tests.support.vllm_rendering POLICY OUT` reads named bodies from stdin.

It is a process of its own, since importing vLLM warns and changes global state.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from vllm.config import ModelConfig, VllmConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.renderers import renderer_from_config
from vllm.renderers.online_renderer import OnlineRenderer


def main(policy: str, out: str) -> None:
    """Write the prompt ids of each body, by name, as JSON to `out`."""
    config = ModelConfig(model=policy, max_model_len=1024, dtype="float32")
    renderer = OnlineRenderer(
        config,
        renderer_from_config(VllmConfig(model_config=config)),
        request_logger=None,
        chat_template=None,
        chat_template_content_format="auto",
    )
    bodies: dict[str, Any] = json.load(sys.stdin)
    Path(out).write_text(json.dumps(asyncio.run(_render(renderer, bodies))))


async def _render(renderer: OnlineRenderer, bodies: dict[str, Any]) -> dict[str, list[int]]:
    ids = {}
    for name, body in bodies.items():
        _, (prompt,) = await renderer.render_chat(ChatCompletionRequest.model_validate(body))
        ids[name] = prompt["prompt_token_ids"]
    return ids


if __name__ == "__main__":
    main(*sys.argv[1:])
