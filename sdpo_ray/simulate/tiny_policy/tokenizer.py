"""The tiny policy's tokenizer: byte-level BPE learned from the corpus, and a ChatML template.

The template adds no system message of its own and writes contents byte for byte.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from sdpo_ray.simulate.tiny_policy.corpus import CorpusConversation

PAD = "<|endoftext|>"
START = "<|im_start|>"
END = "<|im_end|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedExample:
    """One conversation as token ids. Made by `encode`; read by `train`."""

    ids: tuple[int, ...]
    learned: tuple[bool, ...]
    """True at the tokens that an assistant wrote, its end-of-turn token included."""


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level tokenizer, which decodes every text to itself; the three control tokens come first."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[START],
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerFast, conversation: CorpusConversation) -> EncodedExample:
    """Render `conversation` as the chat template does, and mark the assistant's tokens."""
    pieces = [(f"{START}system\n{conversation.system}{END}\n", False)] if conversation.system else []
    for index, text in enumerate(conversation.turns):
        if index % 2 == 0:
            pieces.append((f"{START}user\n{text}{END}\n{START}assistant\n", False))
        else:
            pieces += [(f"{text}{END}", True), ("\n", False)]
    ids: list[int] = []
    learned: list[bool] = []
    for text, is_answer in pieces:
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        learned += [is_answer] * len(piece)
    return EncodedExample(ids=tuple(ids), learned=tuple(learned))
