"""Find entities with Microsoft Presidio (the extra `pii`).

Nothing is downloaded. If the operator has installed a spaCy language model, it tokenizes the text and also finds names
and places; otherwise a blank pipeline tokenizes, which is enough for entities with a pattern.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sdpo_ray.errors import ConfigError

_MODELS = ("en_core_web_trf", "en_core_web_lg", "en_core_web_md", "en_core_web_sm")
_MIN_SCORE = 0.4
"""Presidio's score for a weak pattern, such as nine digits, next to a word that says what it is."""


class Presidio:
    """Finds these entities with Presidio's patterns for English text; `kinds` are their names in lower case.

    Raises ConfigError when Presidio is not installed, and for an entity that no recognizer finds.
    """

    def __init__(self, entities: Sequence[str]) -> None:
        try:
            import tldextract.tldextract as domains
            from presidio_analyzer import AnalyzerEngine
            from presidio_analyzer.recognizer_registry import RecognizerRegistryProvider
        except ImportError as error:
            raise ConfigError("capture.presidio needs Presidio: pip install 'sdpo-ray[pii]'") from error
        # Without this it would download the public suffix list at the first e-mail address; it has a bundled copy.
        domains.TLD_EXTRACTOR.suffix_list_urls = ()
        model = _model()
        engine = _blank() if model is None else _spacy(model)
        engine.load()
        registry = RecognizerRegistryProvider(
            registry_configuration={"supported_languages": ["en"]}
        ).create_recognizer_registry()
        if model is not None:
            registry.add_nlp_recognizer(engine)
        self._analyzer = AnalyzerEngine(registry=registry, nlp_engine=engine, default_score_threshold=_MIN_SCORE)
        known = sorted(self._analyzer.get_supported_entities("en"))
        if unknown := sorted(set(entities) - set(known)):
            raise ConfigError(f"capture.presidio: {', '.join(unknown)}: here are {', '.join(known)}")
        self._entities = list(dict.fromkeys(entities))
        self.kinds = tuple(map(str.lower, self._entities))

    def __call__(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Spans (start, end, kind)."""
        for found in self._analyzer.analyze(text=text, language="en", entities=self._entities):
            yield found.start, found.end, found.entity_type.lower()


def _model() -> str | None:
    import spacy

    return next(filter(spacy.util.is_package, _MODELS), None)


def _spacy(model: str) -> Any:
    from presidio_analyzer.nlp_engine import SpacyNlpEngine

    return SpacyNlpEngine(models=[{"lang_code": "en", "model_name": model}])


def _blank() -> Any:
    import spacy
    from presidio_analyzer.nlp_engine import SlimSpacyNlpEngine
    from spacy.language import Language

    # Presidio compares lemmas near a match with words such as "ssn"; a blank pipeline sets no lemmas.
    Language.component("sdpo_lower_lemmas", func=_lower_lemmas)

    class Blank(SlimSpacyNlpEngine):
        def load(self) -> None:
            nlp = spacy.blank("en")
            nlp.add_pipe("sdpo_lower_lemmas")
            self.nlp: Any = {"en": nlp}

    return Blank()


def _lower_lemmas(doc: Any) -> Any:
    """Use each token in small letters as its lemma."""
    for token in doc:
        token.lemma_ = token.lower_
    return doc
