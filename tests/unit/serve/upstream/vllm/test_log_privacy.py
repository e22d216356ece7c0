"""vLLM's log lines without user text, and Ray Serve's log file, which vLLM would close."""

import json
import logging
import logging.config
from logging.handlers import MemoryHandler
from pathlib import Path

import pytest

from serve.upstream.vllm import log_privacy
from serve.upstream.vllm.log_privacy import UserTextFilter, keep_handlers_open

CANARY = "the moon is made of 4711"
CONFIG = Path(log_privacy.__file__).with_name("logging.json")


def record(name: str, level: int, text: str, *args: object, error: BaseException | None = None) -> logging.LogRecord:
    raised = (type(error), error, None) if error is not None else None
    return logging.LogRecord(name, level, "serving.py", 274, text, args, raised)


@pytest.mark.parametrize(
    ("said", "left"),
    [
        (record("vllm.entrypoints.openai", logging.ERROR, "Error with model %s", CANARY), "Error with model %s"),
        (record("vllm.renderers.hf", logging.WARNING, f"odd: {CANARY}"), "(words withheld)"),
        (
            record("vllm.v1.structured_output", logging.ERROR, "bad grammar: %s", CANARY, error=ValueError(CANARY)),
            "bad grammar: %s [ValueError]",
        ),
        (record("vllm.v1.metrics", logging.WARNING, "%d requests", 7), "7 requests"),
        (record("vllm.entrypoints.launcher", logging.INFO, "port %d", 8000), "port 8000"),
    ],
)
def test_a_warning_about_a_request_keeps_its_place_and_loses_its_words(said: logging.LogRecord, left: str) -> None:
    assert UserTextFilter().filter(said)
    line = logging.Formatter().format(said)
    assert line == left
    assert CANARY not in line


def test_ray_serve_s_file_stays_open_when_all_handlers_are_closed(tmp_path: Path) -> None:
    file = logging.FileHandler(tmp_path / "replica.log")
    gathering = MemoryHandler(1, target=file)
    logger = logging.getLogger("ray.serve")
    logger.addHandler(gathering)
    try:
        with keep_handlers_open():
            logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "incremental": False})
        logger.warning("after")
    finally:
        logger.removeHandler(gathering)
        file.close()
    assert (tmp_path / "replica.log").read_text() == "after\n"


def test_the_configuration_is_one_that_python_takes() -> None:
    config = json.loads(CONFIG.read_text())
    # vLLM's formatter needs its own records, and vLLM.
    config["formatters"]["vllm"] = {"format": "%(message)s"}
    config["loggers"] = {}
    with keep_handlers_open():
        logging.config.dictConfig(config)
