"""Builders of tiny policies, interactions, snapshots and releases."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sdpo_ray.chat import ChatFormat
from sdpo_ray.io.files import sealed_directory
from sdpo_ray.records import (
    BASE_VERSION,
    Consent,
    Fingerprint,
    FinishReason,
    Interaction,
    Message,
    Release,
    Role,
    Sampling,
    Snapshot,
    ToolCall,
    Turn,
    VersionSpan,
)
from sdpo_ray.tables.snapshot_files import write_interactions

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TOOL_CHATML = (
    "{% if tools %}<|im_start|>tools\n{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}<|im_end|>\n{% endif %}"
    "{% for document in documents or [] %}<|im_start|>document\n{{ document | tojson }}<|im_end|>\n{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "{% for call in message.tool_calls or [] %}\n<tool_call>{{ call.id }} {{ call.function.name }} "
    "{{ call.function.arguments | tojson }}</tool_call>{% endfor %}"
    "{% if message.tool_call_id %}\n({{ message.tool_call_id }}){% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think></think>{{ note }}{% endif %}{% endif %}"
)
"""ChatML that shows tools, documents, calls and their results, and knows `enable_thinking` as Qwen3's template does."""


def tiny_policy(path: Path, *, seed: int = 0, tied: bool = True, template: str = CHATML) -> Path:
    """A Qwen3 of 30k random parameters with a tokenizer of bytes and a ChatML template, saved at `path`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: index for index, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=template)
    fast.add_special_tokens(
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "additional_special_tokens": ["<|im_start|>"]}
    )
    fast.save_pretrained(str(path))
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=264,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        intermediate_size=64,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(str(path))
    return path


def interaction(
    chat: ChatFormat,
    *,
    name: str = "t0",
    prompt: str = "What is the capital of France?",
    response: str = "Paris",
    follow_up: str = "Shorter please.",
    temperature: float = 1.0,
    history: Sequence[Message] = (),
    after: Sequence[Message] = (),
    tools: str = "",
    template_kwargs: str = "",
) -> Interaction:
    """An interaction in the tokens of `chat`, with made-up log-probs. `after` are tool calls and results."""
    messages = (*history, Message(role=Role.USER, content=prompt), *after)
    response_ids = (*chat.text_ids(response), chat.eos_id)
    turn = Turn(
        turn_id=name,
        tenant="tenant",
        user="",
        conversation_id="",
        consent=Consent.TRAIN,
        messages=messages,
        tools=tools,
        template_kwargs=template_kwargs,
        response=response,
        prompt_ids=chat.prompt_ids(messages, tools=tools, template_kwargs=template_kwargs),
        response_ids=response_ids,
        response_logprobs=(-1.0,) * len(response_ids),
        version_spans=(VersionSpan(policy_version=BASE_VERSION, start=0, end=len(response_ids)),),
        finish_reason=FinishReason.STOP,
        sampling=Sampling(temperature=temperature, top_p=1.0, top_k=0, max_tokens=64, seed=None),
        started_at_s=1.0,
        finished_at_s=2.0,
    )
    return Interaction(
        interaction_id=name,
        turn=turn,
        follow_up=follow_up,
        follow_up_turn_id=f"{name}-next",
        follow_up_at_s=3.0,
        conversation=name,
    )


def with_turn(before: Interaction, **changes: object) -> Interaction:
    """A copy of `before` with changed values on its turn."""
    return replace(before, turn=replace(before.turn, **changes))  # type: ignore[arg-type]


def as_text(before: Interaction, **changes: object) -> Interaction:
    """A copy of `before` as imported from an external log: no token ids, no policy version."""
    unknown = {"prompt_ids": (), "response_ids": (), "response_logprobs": (), "version_spans": ()}
    return with_turn(before, **unknown | changes)


def dialogue(*texts: str, system: str | None = None) -> tuple[Message, ...]:
    """Messages of user and assistant alternately, the user first; before them the system prompt, if given."""
    messages = (Message(role=(Role.USER, Role.ASSISTANT)[i % 2], content=text) for i, text in enumerate(texts))
    return (*(() if system is None else (Message(role=Role.SYSTEM, content=system),)), *messages)


def tool_use(call_id: str = "c1", *, result: str = "21 C", arguments: str = '{"city": "Paris"}') -> tuple[Message, ...]:
    """A tool call of the assistant and its result."""
    call = ToolCall(call_id=call_id, name="weather", arguments=arguments)
    return (
        Message(role=Role.ASSISTANT, content="", tool_calls=(call,)),
        Message(role=Role.TOOL, content=result, tool_call_id=call_id),
    )


def snapshot(path: Path, interactions: Sequence[Interaction], *, name: str = "s0") -> Snapshot:
    """A sealed snapshot of `interactions`, in their order."""
    with sealed_directory(path) as aside:
        digest = write_interactions(aside, interactions)
    return Snapshot(
        snapshot_id=name,
        table_version=0,
        seed=0,
        rule="all",
        interaction_ids=tuple(each.interaction_id for each in interactions),
        held_out_ids=(),
        path=str(path),
        digest=digest,
        last_interaction_at_s=max(each.follow_up_at_s for each in interactions),
    )


def release(path: Path, *, policy_version: int = BASE_VERSION) -> Release:
    """A release of the policy at `path` with an empty fingerprint, for tests that do not verify it."""
    return Release(
        policy_version=policy_version,
        path=str(path),
        previous_version=None,
        fingerprint=Fingerprint(token_ids=(), logprobs=()),
    )
