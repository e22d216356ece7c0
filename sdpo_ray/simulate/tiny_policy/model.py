"""The tiny policy's model and its pre-training loss."""

import torch
from torch.nn.functional import cross_entropy
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from sdpo_ray.simulate.tiny_policy.recipe import Recipe
from sdpo_ray.simulate.tiny_policy.tokenizer import EncodedExample


def build_model(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """A Qwen3-shaped policy with random weights, drawn from torch's global generator."""
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        intermediate_size=3 * recipe.hidden_size,
        num_hidden_layers=recipe.num_layers,
        num_attention_heads=recipe.hidden_size // 32,
        num_key_value_heads=recipe.hidden_size // 64,
        head_dim=32,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        # At width 128, transformers' 0.02 learned 12 % of the facts in 400 steps, and this 71 %.
        initializer_range=0.06,
        use_cache=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    return model


def answer_loss(model: Qwen3ForCausalLM, examples: list[EncodedExample], pad_id: int) -> torch.Tensor:
    """Mean of -log p over the tokens that an assistant wrote.

    Padding is on the right, where no token of a causal model attends to it, so no attention mask is needed.
    """
    width = max(len(example.ids) for example in examples)
    ids_BT = torch.tensor([[*e.ids, *[pad_id] * (width - len(e.ids))] for e in examples])
    learned_BT = torch.tensor([[*e.learned, *[False] * (width - len(e.ids))] for e in examples])[:, 1:]
    hidden_BTH = model.model(input_ids=ids_BT).last_hidden_state[:, :-1]
    return cross_entropy(model.lm_head(hidden_BTH[learned_BT]), ids_BT[:, 1:][learned_BT])
