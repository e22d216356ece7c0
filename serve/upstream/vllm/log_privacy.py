"""Keeps request text out of vLLM's log lines, and Ray Serve's log file open while vLLM configures its logging."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import MemoryHandler
from pathlib import Path

_READ_REQUESTS = (
    "vllm.entrypoints",
    "vllm.inputs",
    "vllm.parser",
    "vllm.reasoning",
    "vllm.renderers",
    "vllm.tokenizers",
    "vllm.tool_parsers",
    "vllm.v1.engine.input_processor",
    "vllm.v1.structured_output",
)
"""Loggers of code that reads requests."""


class UserTextFilter(logging.Filter):
    """Keeps a warning's format string, source line and kind of error, and drops the values that were filled in."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING and record.name.startswith(_READ_REQUESTS):
            # A message without arguments may have been formatted before, with text of a request in it.
            message = str(record.msg) if record.args else "(words withheld)"
            kind = record.exc_info and record.exc_info[0]
            record.msg = f"{message} [{kind.__name__}]" if kind else message
            record.args, record.exc_info, record.exc_text, record.stack_info = None, None, None, None
        return True


def filter_user_text() -> None:
    """Let vLLM log through `UserTextFilter`, here and in the engine's process. Call it before vLLM is imported."""
    os.environ["VLLM_LOGGING_CONFIG_PATH"] = str(Path(__file__).with_name("logging.json"))


@contextmanager
def keep_handlers_open() -> Iterator[None]:
    """Keep Ray Serve's log file open while vLLM 0.32 configures its own logging.

    vLLM calls `logging.config.dictConfig`, which closes every handler of the process; a closed MemoryHandler, as Ray
    Serve's is, has lost its target.
    """
    handlers = [each for each in logging.getLogger("ray.serve").handlers if isinstance(each, MemoryHandler)]
    targets = [handler.target for handler in handlers]
    try:
        yield
    finally:
        for handler, target in zip(handlers, targets, strict=True):
            handler.setTarget(target)
