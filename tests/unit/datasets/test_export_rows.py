"""Rows for other trainers: what is in them, and that our own importer reads them back."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.chat import ChatFormat
from sdpo_ray.datasets.conversation_split import SplitLimits, split_conversation
from sdpo_ray.datasets.export_rows import SCHEMAS, ExportKind, interaction_rows, json_lines, label_rows, preference_rows
from sdpo_ray.datasets.file_reader import read_rows
from sdpo_ray.datasets.formats import Format, detect_format, read_record
from sdpo_ray.errors import DataError
from sdpo_ray.records import BASE_VERSION, Consent, Feedback, Interaction, Message, Redaction, Role, Thumb
from tests.support.builders import as_text, dialogue, interaction, tool_use
from tests.support.paths import CHECKPOINT

TOOLS = '[{"type":"function","function":{"name":"weather","parameters":{"type":"object"}}}]'
EVERYTHING = SplitLimits(max_messages=1000, max_answer_chars=10**9, language=None)


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(CHECKPOINT)


def made(chat: ChatFormat) -> list[Interaction]:
    plain = as_text(
        interaction(chat, name="plain", response="Paris 🙂", follow_up="Shorter!"), tenant="acme", user="k1.u"
    )
    long = as_text(interaction(chat, name="long", history=dialogue("Hi", "Hello", system="Be kind.")))
    called = as_text(
        interaction(chat, name="called", prompt="Weather?", after=tool_use(), follow_up="Thanks\nso much"),
        tools=TOOLS,
        template_kwargs='{"enable_thinking": false}',
        redactions=(Redaction(kind="email", n=2),),
    )
    return [plain, long, called]


def feedback(turn_id: str, **said: Any) -> Feedback:
    return Feedback(
        feedback_id=f"f-{turn_id}",
        turn_id=turn_id,
        tenant="tenant",
        user="",
        consent=Consent.TRAIN,
        given_at_s=9.0,
        **said,
    )


def imported(rows: pa.Table, path: Path) -> list[Interaction]:
    """What the importer makes of a file of these rows."""
    if path.suffix == ".parquet":
        pq.write_table(rows, path)
    else:
        path.write_bytes(b"".join(json_lines(rows)))
    found: list[Interaction] = []
    for number, read in enumerate(read_rows(path, {*rows.column_names, "messages"})):
        assert read.record is not None
        assert detect_format(read.record) is Format.TRIPLES
        conversation = read_record(read.record, Format.TRIPLES, number=number)
        unrolled = split_conversation(conversation, tenant="t", limits=EVERYTHING, detect=lambda text: None)
        assert not unrolled.refused
        found += unrolled.interactions
    return found


def words(each: Interaction) -> tuple[object, ...]:
    turn = each.turn
    return turn.messages, turn.tools, turn.template_kwargs, turn.response, each.follow_up, turn.started_at_s


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_what_is_exported_is_imported_as_it_was(chat: ChatFormat, tmp_path: Path, name: str):
    interactions = made(chat)
    again = imported(interaction_rows(interactions), tmp_path / name)
    assert [words(each) for each in again] == [words(each) for each in interactions]
    assert len({each.conversation for each in again}) == 3


@settings(deadline=None)
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(str.strip), min_size=3, max_size=3),
    name=st.sampled_from(["rows.jsonl", "rows.parquet"]),
)
def test_any_words_come_back(
    chat: ChatFormat, tmp_path_factory: pytest.TempPathFactory, texts: Sequence[str], name: str
):
    prompt, response, follow_up = texts
    asked = as_text(interaction(chat, prompt=prompt, response=response, follow_up=follow_up))
    (again,) = imported(interaction_rows([asked]), tmp_path_factory.mktemp("any") / name)
    assert words(again) == words(asked)


def test_a_line_of_json_has_openai_s_messages_and_nothing_that_is_not_there(chat: ChatFormat):
    plain, _, called = map(json.loads, json_lines(interaction_rows(made(chat))))
    assert plain == {
        "prompt": [{"role": "user", "content": "What is the capital of France?"}],
        "completion": [{"role": "assistant", "content": "Paris 🙂"}],
        "user_response": "Shorter!",
        "interaction_id": "plain",
        "follow_up_turn_id": "plain-next",
        "follow_up_at_s": 3.0,
        "conversation": "plain",
        "turn_id": "plain",
        "tenant": "acme",
        "user": "k1.u",
        "consent": "train",
        "policy_version": -1,
        "created": 1.0,
        "redactions": [],
    }
    call, result = called["prompt"][1:]
    assert call["tool_calls"] == [
        {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    ]
    assert result == {"role": "tool", "content": "21 C", "tool_call_id": "c1"}
    assert json.loads(called["tools"])[0]["function"]["name"] == "weather"
    assert called["redactions"] == [{"kind": "email", "n": 2}]


def test_an_edited_answer_is_chosen_over_the_one_that_was_given(chat: ChatFormat):
    turn = interaction(chat, response="Paris, of course!").turn
    rows = preference_rows([(feedback(turn.turn_id, edited="Paris"), turn)])
    (line,) = map(json.loads, json_lines(rows))
    assert line["prompt"] == [{"role": "user", "content": "What is the capital of France?"}]
    assert line["chosen"] == [{"role": "assistant", "content": "Paris"}]
    assert line["rejected"] == [{"role": "assistant", "content": "Paris, of course!"}]
    assert (line["feedback_id"], line["turn_id"], line["policy_version"], line["given_at_s"]) == (
        "f-t0",
        "t0",
        BASE_VERSION,
        9.0,
    )


def test_a_thumb_is_a_label(chat: ChatFormat):
    turn = interaction(chat).turn
    rows = label_rows([(feedback("t0", thumb=thumb), turn) for thumb in Thumb])
    assert rows["label"].to_pylist() == [True, False]
    assert rows["completion"].to_pylist()[0][0]["content"] == "Paris"


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_the_datasets_library_and_trl_know_the_rows_for_what_they_are(chat: ChatFormat, tmp_path: Path, name: str):
    from datasets import load_dataset
    from transformers import AutoTokenizer
    from trl import is_conversational
    from trl.data_utils import maybe_apply_chat_template

    turns = [each.turn for each in made(chat)]
    given = [(feedback(turn.turn_id, edited="Oui", thumb=Thumb.UP), turn) for turn in turns]
    tables = {
        ExportKind.INTERACTIONS: interaction_rows(made(chat)),
        ExportKind.PREFERENCES: preference_rows(given),
        ExportKind.LABELS: label_rows(given),
    }
    for what, rows in tables.items():
        assert rows.schema == SCHEMAS[what]
        path = tmp_path / f"{what}-{name}"
        if path.suffix == ".parquet":
            pq.write_table(rows, path)
        else:
            path.write_bytes(b"".join(json_lines(rows)))
        form = "parquet" if path.suffix == ".parquet" else "json"
        loaded = load_dataset(form, data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
        assert len(loaded) == 3
        for row in loaded:
            assert is_conversational(row)
        shown = maybe_apply_chat_template(loaded[0], AutoTokenizer.from_pretrained(CHECKPOINT))
        assert "capital of France" in shown["prompt"]
        assert shown["chosen" if what is ExportKind.PREFERENCES else "completion"].startswith(
            "Oui" if what is ExportKind.PREFERENCES else "Paris"
        )


def test_nothing_is_a_table_of_no_rows():
    for make, what in (
        (interaction_rows, ExportKind.INTERACTIONS),
        (preference_rows, ExportKind.PREFERENCES),
        (label_rows, ExportKind.LABELS),
    ):
        assert make([]).schema == SCHEMAS[what]


def test_a_message_without_words_stays(chat: ChatFormat):
    asked = as_text(interaction(chat), messages=(Message(role=Role.USER, content="a"), *dialogue("")))
    (line,) = map(json.loads, json_lines(interaction_rows([asked])))
    assert line["prompt"] == [{"role": "user", "content": "a"}, {"role": "user", "content": ""}]


def test_tools_in_a_text_that_is_no_json_are_refused():
    record = {"prompt": "a", "completion": "b", "user_response": "c"}
    assert read_record(record | {"tools": TOOLS}, Format.TRIPLES, number=0).tools == TOOLS
    with pytest.raises(DataError, match="no JSON"):
        read_record(record | {"tools": "a hammer"}, Format.TRIPLES, number=0)
