"""LoRA in a batch that mixes adapters, against products computed by hand."""

import pytest
import torch

from serve.upstream.vllm.cpu_lora import add_products

RANK, INTO, WIDTHS, PADDED = 2, 3, (4, 1), (4, 2)


@pytest.mark.parametrize(
    "slots",
    [[-1, -1], [0, 0, 0], [-1, 0, -1, 1, 1], [1, -1], [0, 1, 0]],
    ids=["nobody", "everybody", "mixed", "the last slot and nobody", "two in turns"],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_row_gets_its_own_adapter_and_a_row_without_one_gets_none(slots: list[int], dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    downs = tuple(random(2, 1, RANK, INTO) for _ in WIDTHS)
    ups = tuple(random(2, 1, out, RANK) for out in PADDED)
    x, before = random(len(slots), INTO), random(len(slots), sum(WIDTHS))
    after = before.clone()
    add_products(after, x, torch.tensor(slots), downs, ups, scale=0.5, widths=WIDTHS)
    expected = before.clone()
    for row, slot in enumerate(slots):
        if slot >= 0:
            parts = [
                0.5 * up[slot, 0, :width].float() @ (down[slot, 0].float() @ x[row].float())
                for down, up, width in zip(downs, ups, WIDTHS, strict=True)
            ]
            expected[row] += torch.cat(parts).to(dtype)
    torch.testing.assert_close(after, expected)
