"""Presidio beside our own recognisers, without network access."""

import socket
import sys
from collections import Counter
from pathlib import Path

import pytest

from sdpo_ray.errors import ConfigError
from sdpo_ray.redaction import Redactor

pytestmark = pytest.mark.integration
ENTITIES = ("US_SSN", "CRYPTO", "EMAIL_ADDRESS", "US_BANK_NUMBER", "CREDIT_CARD")


@pytest.fixture(scope="module")
def redactor() -> Redactor:
    pytest.importorskip("presidio_analyzer", reason="the extra pii is not installed")
    return Redactor(["email", "card"], presidio=ENTITIES)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    asked: list[object] = []

    def refuse(*address: object, **_: object) -> None:
        asked.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    return asked


def test_presidio_finds_what_we_have_no_recogniser_for(redactor: Redactor, offline: list[object]) -> None:
    text = "My ssn is 536-22-1843, send coins to 1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2, mail jane@example.co.uk"
    assert redactor.redact(text) == (
        "My ssn is [us_ssn], send coins to [crypto], mail [email]",
        Counter(us_ssn=1, crypto=1, email=1),
    )
    assert not offline


def test_of_two_finds_of_one_length_ours_is_taken(redactor: Redactor) -> None:
    assert redactor.redact("jane@example.com, 4111111111111111")[0] == "[email], [card]"


def test_a_weak_pattern_counts_only_beside_a_context_word(redactor: Redactor) -> None:
    assert redactor.redact("the bank account is 945456787654")[0] == "the bank account is [us_bank_number]"
    assert redactor.redact("the parcel is 945456787654")[0] == "the parcel is 945456787654"


def test_a_second_pass_finds_nothing(redactor: Redactor) -> None:
    text = "ssn 536-22-1843jane@example.com536-22-1843 536-22-1843, account 945456787654 jane@example.com.a@b.cc"
    redacted, counts = redactor.redact(text)
    assert counts["us_ssn"]
    assert redactor.redact(redacted) == (redacted, Counter())


def test_an_unknown_entity_type_is_refused_with_the_known_ones(redactor: Redactor) -> None:
    with pytest.raises(ConfigError, match=r"capture.presidio: PERSON, X: here are .*CRYPTO.*US_SSN"):
        Redactor([], presidio=["X", "PERSON", "US_SSN"])


MODEL = """
import spacy

def load(**options):
    nlp = spacy.blank("en")
    ruler = nlp.add_pipe("entity_ruler")
    ruler.add_patterns([{"label": "PERSON", "pattern": "Jane Doe"}])
    return nlp
"""


def test_an_installed_model_finds_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: list[object]) -> None:
    pytest.importorskip("presidio_analyzer", reason="the extra pii is not installed")
    (tmp_path / "en_core_web_sm").mkdir()
    (tmp_path / "en_core_web_sm" / "__init__.py").write_text(MODEL)
    (tmp_path / "en_core_web_sm-3.8.0.dist-info").mkdir()
    (tmp_path / "en_core_web_sm-3.8.0.dist-info" / "METADATA").write_text("Name: en_core_web_sm\nVersion: 3.8.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        redactor = Redactor(["email"], presidio=["PERSON"])
        assert redactor.redact("I am Jane Doe, jane@example.com")[0] == "I am [person], [email]"
    finally:
        sys.modules.pop("en_core_web_sm", None)
    assert not offline
