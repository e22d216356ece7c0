"""What Microsoft Presidio finds (the extra `pii`).

Nothing is fetched: the words of a text are told apart by a language model of spaCy where the operator has installed
one, which then finds names and places, too; else by a blank pipeline, which is enough for everything with a form.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from sdpo_ray.errors import ConfigError

_MODELS = ("en_core_web_trf", "en_core_web_lg", "en_core_web_md", "en_core_web_sm")
_MIN_SCORE = 0.4
"""What Presidio gives a weak pattern, such as nine digits, once a word beside it says what they are."""


class Presidio:
    """Finds these entities, each named in small letters, with Presidio's patterns for English texts.

    Raises ConfigError where Presidio is not installed, and for an entity that nothing here finds.
    """

    def __init__(self, entities: Sequence[str]) -> None:
        try:
            import tldextract.tldextract as domains
            from presidio_analyzer import AnalyzerEngine
            from presidio_analyzer.recognizer_registry import RecognizerRegistryProvider
        except ImportError as error:
            raise ConfigError("capture.presidio needs Presidio: pip install 'sdpo-ray[pii]'") from error
        # It would download the list of public suffixes when it sees the first e-mail address; it brings a copy.
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

    class Blank(SlimSpacyNlpEngine):
        def load(self) -> None:
            self.nlp: Any = {"en": spacy.blank("en")}

        def process_text(self, text: str, language: str) -> Any:
            # Presidio compares the lemmas beside a find with words such as "ssn"; a blank pipeline makes none.
            doc = self.nlp[language](text)
            for token in doc:
                token.lemma_ = token.lower_
            return self._doc_to_nlp_artifact(doc, language)

    return Blank()
