"""The commands of docs/operations.md, executed on a separate cluster.

They run in the order of the page, in one shell environment, verbatim except for what `HERE` replaces: ports, the run
file and paths.
"""

import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from sdpo_ray.capture.pairing_keys import pairing_keys
from sdpo_ray.capture.pseudonyms import Pseudonyms
from sdpo_ray.cluster.local_cluster import LocalCluster, free_port
from sdpo_ray.config import PersonalConfig
from sdpo_ray.curate.sampling import is_held_out
from sdpo_ray.headers import CONVERSATION_ID
from sdpo_ray.io.paths import Layout
from sdpo_ray.tables.delta_table import Table
from tests.support.paths import REPOSITORY

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
PAGE = (REPOSITORY / "docs" / "operations.md").read_text()
PROGRAMS = ("curl", "export", "kafka-", "python", "ray", "serve", "source", "tail")
ELSEWHERE = {
    "ray start": "LocalCluster is `ray start --head` with ports of its own",
    "kafka-": "needs a broker of Apache Kafka; tests/integration/test_kafka.py makes its topics itself",
}
"""Prefixes of commands that are skipped here, with the reason."""
ANN = "ann@example.org"
LOGGED = {
    "messages": [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris, a large city on the Seine."},
        {"role": "user", "content": "Shorter please."},
        {"role": "assistant", "content": "Paris."},
    ]
}


def commands() -> list[str]:
    """Every command of the page, continued lines joined."""
    blocks = re.findall(r"(?:^    .*\n)+", PAGE.replace(" \\\n", " "), flags=re.M)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    return [re.sub(r"\s{2,}#.*| {4,}", " ", line).strip() for line in lines if line.startswith(PROGRAMS)]


def here() -> list[str]:
    return [each for each in commands() if not each.startswith(tuple(ELSEWHERE))]


class Shell:
    """Runs the page's commands as an operator would, with the variables that the page exports."""

    def __init__(self, cluster: LocalCluster, folder: Path, run_file: Path, url: str) -> None:
        self._environment = cluster.environment | {
            "PYTHONPATH": str(REPOSITORY),
            "RAY_API_SERVER_ADDRESS": cluster.dashboard,
            "HOME": str(folder),
            "COLUMNS": "160",
        }
        self._exports = {
            "RUN": str(run_file),
            "URL": url,
            "ROOT": str(folder / "run"),
            "BACKUPS": str(folder / "backups"),
            "LOGS": str(folder / "conversations.jsonl"),
            "WORK": str(folder / "work"),
            "TURN": "",
            "OPENAI_API_KEY": "none",
        }

    def set(self, name: str, value: str) -> None:
        self._exports[name] = value

    def value(self, name: str) -> str:
        return self._exports[name]

    def expect(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run one command of the page; it must succeed. The variables that the page exports are already set."""
        if command.startswith("export "):
            assert set(re.findall(r"(\w+)=", command)) <= self._exports.keys()
            return subprocess.CompletedProcess(command, 0, "", "")
        done = subprocess.run(
            ["bash", "-c", command],
            env=self._environment | self._exports,
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done


class Operator:
    """The steps between the commands: chats, waiting for a cycle, reading an id."""

    def __init__(self, shell: Shell, url: str, root: Path) -> None:
        self._shell = shell
        self._url = url
        self._root = root

    def before(self, command: str) -> None:
        if command.startswith(("ray job logs", "ray job stop")):
            self._talk_until_a_cycle_is_over()
        if "--user ann" in command and ("personalize.py" in command or "erase.py" in command):
            self._shell.set("TURN", self._ann_speaks())
        if "personalize.py" in command:
            self._wait_until_paired(self._shell.value("TURN"))

    def after(self, command: str, done: subprocess.CompletedProcess[str]) -> None:
        if "keys.py add" in command:
            key = re.search(r"sdpo-[\w-]{40,}", done.stdout)
            assert key, done.stdout
            self._shell.set("OPENAI_API_KEY", key[0])
        if "keys.py list" in command:
            self._shell.set("KEY_ID", re.findall(r"^\W*([0-9a-f]{8})\b", done.stdout, flags=re.M)[0])

    def _talk_until_a_cycle_is_over(self) -> None:
        while not any('"cycle_finished"' in line for line in self._events()):
            assert "RUNNING" in self._shell.expect("ray job status loop").stdout
            self._shell.expect("python jobs/simulate.py --run $RUN --conversations 24")

    def _wait_until_paired(self, turn_id: str) -> None:
        """Wait until the training loop runs and gathers interactions."""
        deadline = time.monotonic() + 240
        interactions = Table.interactions(Layout(self._root))
        while turn_id not in interactions.read(["interaction_id"])["interaction_id"].to_pylist():
            assert time.monotonic() < deadline, "the training loop does not pair what was said"
            time.sleep(1)
            interactions.refresh()

    def _events(self) -> list[str]:
        file = self._root / "events.jsonl"
        return file.read_text().splitlines() if file.exists() else []

    def _ann_speaks(self) -> str:
        """Two conversations of two turns, to judge and to learn her policy by; the latter's first receipt."""
        key = Pseudonyms.load(Layout(self._root).pseudonym_keys).pairing_key

        def held_out(conversation: str) -> bool:
            who = {"tenant": "default", "user": ANN, "conversation_id": conversation}
            keys = pairing_keys(key=key, **who, messages=(), response="")
            return is_held_out(keys.conversation, PersonalConfig().held_out)

        names = [f"ann-{time.monotonic_ns()}-{number}" for number in range(100)]
        apart, learned = (next(name for name in names if held_out(name) is side) for side in (True, False))
        self._converse(apart, "What is the capital of Italy?")
        return self._converse(learned, "What is the capital of France?")

    def _converse(self, conversation: str, question: str) -> str:
        client = OpenAI(base_url=f"{self._url}/v1", api_key=self._shell.value("OPENAI_API_KEY"), timeout=60)
        messages: list[Any] = [{"role": "user", "content": question}]
        receipts = []
        for follow_up in ("Shorter please.", "Thanks."):
            raw = client.chat.completions.with_raw_response.create(
                model="policy",
                messages=messages,
                max_tokens=32,
                user=ANN,
                extra_headers={CONVERSATION_ID: conversation},
            )
            receipts.append(raw.headers["x-sdpo-turn-id"])
            answer = {"role": "assistant", "content": raw.parse().choices[0].message.content}
            messages += [answer, {"role": "user", "content": follow_up}]
        return receipts[0]


@pytest.fixture(scope="module")
def operator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Shell, Operator]]:
    folder = tmp_path_factory.mktemp("operations")
    port = free_port()
    run_file = folder / "run.toml"
    laptop = (REPOSITORY / "jobs" / "recipes" / "laptop.toml").read_text()
    laptop = laptop.replace("~/.sdpo-ray/laptop", str(folder / "run"))
    laptop = laptop.replace("[personal]", "[personal]\nmin_interactions = 1")
    laptop = laptop.replace("[evaluate]\n", "[evaluate]\nnum_prompts = 16\n")
    run_file.write_text(f"{laptop}\n[serve]\nport = {port}\nadapters = 2\n")
    (folder / "conversations.jsonl").write_text(json.dumps(LOGGED) + "\n")
    with LocalCluster(num_cpus=6, log=folder / "ray.log") as cluster:
        shell = Shell(cluster, folder, run_file, f"http://127.0.0.1:{port}")
        yield shell, Operator(shell, f"http://127.0.0.1:{port}", folder / "run")


def test_every_command_of_the_page_works_in_the_order_of_the_page(operator: tuple[Shell, Operator]):
    shell, person = operator
    assert len(here()) > 20
    for command in here():
        person.before(command)
        person.after(command, shell.expect(command))


def test_every_command_that_does_not_run_here_is_known():
    strange = [each for each in commands() if each not in here() and not each.startswith(tuple(ELSEWHERE))]
    assert strange == []
    assert [start for start in ELSEWHERE if not any(each.startswith(start) for each in commands())] == []
