"""Detect the language of a conversation whose log does not state it."""

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
"""The languages that are told apart, by ISO 639-1 code: the usual ones of chat logs. Each further one costs memory and
accuracy."""

Detect = Callable[[str], str | None]
"""Maps a text to a code in `LANGUAGES`, or to None when the language is unclear."""

_CHARS_A_MESSAGE = 400
_CHARS = 1000


def is_stated(stated: str, language: str) -> bool:
    """Whether `stated` (lower case) names the code `language`: by English name, or by code, also with a country."""
    return stated == LANGUAGES[language] or stated.replace("_", "-").split("-")[0] == language


def sample(messages: Sequence[Message]) -> str:
    """Text to detect the language of a conversation from: the beginnings of its first messages, of all roles.

    A short question alone is often taken for another language, with its answer hardly ever.
    """
    return "\n".join(message.content[:_CHARS_A_MESSAGE] for message in messages)[:_CHARS]


def detector() -> Detect:
    """A detector with lingua's n-gram models. They load with the first text, in 2 s, and take 270 MiB."""
    from lingua import Language, LanguageDetectorBuilder

    languages = [getattr(Language, name.upper()) for name in LANGUAGES.values()]
    lingua = LanguageDetectorBuilder.from_languages(*languages).build()

    def detect(text: str) -> str | None:
        language = lingua.detect_language_of(text)
        return language.iso_code_639_1.name.lower() if language is not None else None

    return detect
