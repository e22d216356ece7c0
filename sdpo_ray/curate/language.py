"""Which language a conversation is in, where its log does not say."""

from collections.abc import Callable, Sequence

from sdpo_ray.records import Message

LANGUAGES = {
    "ar": "arabic",
    "de": "german",
    "en": "english",
    "es": "spanish",
    "fr": "french",
    "id": "indonesian",
    "it": "italian",
    "ja": "japanese",
    "ko": "korean",
    "nl": "dutch",
    "pl": "polish",
    "pt": "portuguese",
    "ru": "russian",
    "tr": "turkish",
    "vi": "vietnamese",
    "zh": "chinese",
}
"""What is told apart, by ISO 639-1 code: the usual languages of chat logs. Each more costs memory and certainty."""

Detect = Callable[[str], str | None]
"""A text to one of the codes in `LANGUAGES`, or None where it could be any."""

_CHARS_A_MESSAGE = 400
_CHARS = 1000


def is_stated(stated: str, language: str) -> bool:
    """Whether what a log states, in small letters, is `language`: its name, its code, or its code with a country."""
    return stated == LANGUAGES[language] or stated.replace("_", "-").split("-")[0] == language


def sample(messages: Sequence[Message]) -> str:
    """What of a conversation its language is read from: the beginnings of its first messages.

    All roles count: a short question alone is often taken for another language, with its answer hardly ever.
    """
    return "\n".join(message.content[:_CHARS_A_MESSAGE] for message in messages)[:_CHARS]


def detector() -> Detect:
    """A detector by lingua's n-gram models; they take 2 s to load, with the first text, and 270 MiB."""
    from lingua import Language, LanguageDetectorBuilder

    languages = [getattr(Language, name.upper()) for name in LANGUAGES.values()]
    lingua = LanguageDetectorBuilder.from_languages(*languages).build()

    def detect(text: str) -> str | None:
        found = lingua.detect_language_of(text)
        return found.iso_code_639_1.name.lower() if found is not None else None

    return detect
