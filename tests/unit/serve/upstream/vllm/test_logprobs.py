import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

# vLLM imports torch's compiler, which uses what torch deprecates: nothing of it is imported outside of a test.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")


@pytest.fixture(autouse=True)
def not_compiled() -> Iterator[None]:
    """As on the CPU: compiling one sampler takes half a minute."""
    import torch._dynamo

    with torch._dynamo.config.patch(disable=True):
        yield


class CountingTokenizer:
    """Counts how often it was asked for a text."""

    is_fast = True

    def __init__(self) -> None:
        self.asked = 0

    def decode(self, ids: list[int]) -> str:
        self.asked += 1
        return f"<{ids}>"


def processor(*, recorded_alone: bool, tokenizer: Any) -> Any:
    from vllm import SamplingParams

    from serve.upstream.vllm.logprobs import RECORDED_ALONE, SampledLogprobs

    request: Any = SimpleNamespace(sampling_params=SamplingParams(logprobs=0))
    token = RECORDED_ALONE.set(recorded_alone)
    try:
        return SampledLogprobs.from_new_request(tokenizer, request)
    finally:
        RECORDED_ALONE.reset(token)


def output(*tokens: tuple[int, float]) -> Any:
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.outputs import LogprobsLists

    ids, logprobs = zip(*tokens, strict=True)
    lists = LogprobsLists(
        np.array(ids, dtype=np.int32)[:, None],
        np.array(logprobs, dtype=np.float32)[:, None],
        np.zeros(len(tokens), dtype=np.int64),
    )
    return EngineCoreOutput(request_id="r", new_token_ids=list(ids), new_logprobs=lists)


def test_for_the_recorder_alone_logprobs_are_numbers_and_no_token_becomes_text():
    tokenizer = CountingTokenizer()
    made = processor(recorded_alone=True, tokenizer=tokenizer)
    made.update_from_output(output((5, -0.5)))
    made.update_from_output(output((7, -2.0), (9, -0.25)))
    assert made.logprobs == [-0.5, -2.0, -0.25]
    assert all(type(each) is float for each in made.logprobs)
    assert tokenizer.asked == 0


def test_a_client_that_asks_for_logprobs_gets_vllms():
    tokenizer = CountingTokenizer()
    made = processor(recorded_alone=False, tokenizer=tokenizer)
    made.update_from_output(output((5, -0.5)))
    assert made.logprobs[0][5].logprob == -0.5
    assert made.logprobs[0][5].decoded_token == "<[5]>"


def metadata(num_logprobs: int, *, rows: int) -> Any:
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata

    nothing = torch.empty(0)
    return SamplingMetadata(
        temperature=None,
        all_greedy=True,
        all_random=False,
        top_p=None,
        top_k=None,
        generators={},
        max_num_logprobs=num_logprobs,
        no_penalties=True,
        prompt_token_ids=None,
        frequency_penalties=nothing,
        presence_penalties=nothing,
        repetition_penalties=nothing,
        output_token_ids=[[]] * rows,
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(),
    )


def test_the_lean_sampler_draws_the_same_tokens_with_the_same_logprobs():
    from vllm.v1.sample.sampler import Sampler

    from serve.upstream.vllm.sampler import LeanSampler

    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    samplers = (Sampler("processed_logprobs"), LeanSampler("processed_logprobs"))
    vllms, lean = (sampler(logits.clone(), metadata(0, rows=6)) for sampler in samplers)
    assert torch.equal(lean.sampled_token_ids, vllms.sampled_token_ids)
    assert torch.equal(lean.logprobs_tensors.logprob_token_ids, vllms.logprobs_tensors.logprob_token_ids)
    assert torch.equal(lean.logprobs_tensors.logprobs, vllms.logprobs_tensors.logprobs)
    largest = torch.log_softmax(logits, dim=-1).max(dim=-1).values
    assert lean.logprobs_tensors.logprobs[:, 0].tolist() == pytest.approx(largest.tolist())


def test_the_lean_sampler_ranks_where_a_request_wants_top_logprobs():
    from serve.upstream.vllm.sampler import LeanSampler

    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(2))
    found = LeanSampler("processed_logprobs")(logits, metadata(3, rows=4)).logprobs_tensors
    assert found.logprobs.shape == (4, 4)
    assert found.selected_token_ranks.tolist() == [1, 1, 1, 1]


def test_the_lean_sampler_ranks_the_tokens_of_prompts():
    from serve.upstream.vllm.sampler import LeanSampler

    sampler = LeanSampler("processed_logprobs")
    sampler(torch.zeros(1, 3), metadata(0, rows=1))
    found = sampler.gather_logprobs(torch.tensor([[0.5, 0.3, 0.2]]).log(), 0, torch.tensor([2]))
    assert found.selected_token_ranks.tolist() == [3]
    assert found.logprobs[0, 0].item() == pytest.approx(math.log(0.2))


def received(lists: Any, *, row: int) -> Any:
    """What the server gets of one request's share of a step."""
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    share = EngineCoreOutput(request_id="r", new_token_ids=[row], new_logprobs=lists.slice_request(row, 1))
    sent = [bytes(part) for part in MsgpackEncoder().encode(EngineCoreOutputs(outputs=[share]))]
    return MsgpackDecoder(EngineCoreOutputs).decode(sent).outputs[0].new_logprobs


def test_the_server_receives_of_the_lean_sampler_what_it_would_of_vllms():
    from vllm.v1.sample.sampler import Sampler

    from serve.upstream.vllm.sampler import LeanSampler

    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(3))
    samplers = (Sampler("processed_logprobs"), LeanSampler("processed_logprobs"))
    vllms, lean = (sampler(logits.clone(), metadata(0, rows=6)).logprobs_tensors.tolists() for sampler in samplers)
    for row in range(6):
        theirs, ours = received(vllms, row=row), received(lean, row=row)
        assert ours.logprobs.dtype == theirs.logprobs.dtype == np.float32
        assert ours.logprob_token_ids.dtype == theirs.logprob_token_ids.dtype == np.int32
        assert ours.logprobs.tolist() == theirs.logprobs.tolist() == vllms.logprobs[row : row + 1].tolist()
        assert ours.logprob_token_ids.tolist() == theirs.logprob_token_ids.tolist()
        assert ours.sampled_token_ranks.shape == theirs.sampled_token_ranks.shape


def test_a_share_of_several_tokens_of_the_lean_sampler_is_vllms():
    from serve.upstream.vllm.sampler import LeanSampler

    lists = LeanSampler("processed_logprobs")(torch.eye(4), metadata(0, rows=4)).logprobs_tensors.tolists()
    assert lists.slice_request(1, 2).logprob_token_ids.tolist() == [[1], [2]]
    assert lists.slice_request(1, 0).logprobs.shape == (0, 1)
