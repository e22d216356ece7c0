"""EleutherAI's evaluation harness, as shipped, against the API: log-likelihoods of completions, and chats.

It prints and warns freely, so it runs in separate processes, concurrently: most of its time is imports.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.support.serving import ReferencePolicy, Served

pytestmark = pytest.mark.integration
DOCS = [
    {"question": "The capital of France is", "choices": [" Paris.", " Rome.", " a kangaroo"], "answer": 0},
    {"question": "The capital of Italy is", "choices": [" Paris.", " Rome."], "answer": 1},
]
CHOICE = """
task: capitals
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""
CHAT = """
task: chatter
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}} which city?"
doc_to_target: "Paris"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 24, temperature: 0.0}}
metric_list: [{{metric: exact_match}}]
"""


def evaluating(folder: Path, task: str, text: str, model: str, url: str, *more: str) -> "subprocess.Popen[str]":
    """Start the harness on one task."""
    data = folder / "docs.jsonl"
    data.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (folder / f"{task}.yaml").write_text(text.format(data=data))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "OPENAI_API_KEY": "x"}
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--tasks", task, "--include_path", str(folder)]
    arguments = ["--model_args", f"model=policy,base_url={url},{','.join(('num_concurrent=2,max_retries=1', *more))}"]
    output = ["--output_path", str(folder / "out"), "--log_samples"]
    chat = ["--apply_chat_template"] if "chat" in model else []
    return subprocess.Popen(
        [*command, *arguments, *output, *chat],
        env={**os.environ, **offline},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=folder,
    )


def samples(folder: Path, task: str, harness: "subprocess.Popen[str]") -> list[Any]:
    said, _ = harness.communicate(timeout=300)
    assert harness.returncode == 0, said
    (file,) = (folder / "out").rglob(f"samples_{task}_*.jsonl")
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_harness_scores_completions_and_chats(served: Served, tmp_path: Path):
    before = set(served.turns())
    tokenizer = f"tokenizer={served.base}"
    runs = [
        (tmp_path, "capitals", CHOICE, "local-completions", f"{served.url}/v1/completions", tokenizer),
        (tmp_path, "chatter", CHAT, "local-chat-completions", f"{served.url}/v1/chat/completions"),
    ]
    scored, chatted = [evaluating(*run) for run in runs]
    found = samples(tmp_path, "capitals", scored)
    assert len(found) == len(DOCS)
    words, reference = AutoTokenizer.from_pretrained(str(served.base)), ReferencePolicy(served.base)
    for sample in found:
        choices = sample["doc"]["choices"]
        assert len(sample["filtered_resps"]) == len(choices)
        for choice, (logprob, _) in zip(choices, sample["filtered_resps"], strict=True):
            asked = words.encode(sample["doc"]["question"])
            ids = words.encode(sample["doc"]["question"] + choice)
            assert float(logprob) == pytest.approx(sum(reference.logprobs(ids)[len(asked) - 1 :]), abs=1e-3)
    answers = [sample["filtered_resps"][0] for sample in samples(tmp_path, "chatter", chatted)]
    turns = [turn for turn_id, turn in served.turns().items() if turn_id not in before]
    assert sorted(turn.response for turn in turns) == sorted(answers)
    assert all(turn.sampling.temperature == 0 for turn in turns)
