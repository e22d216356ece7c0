"""The redactor's output, for real and generated text."""

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdpo_ray.config import Run
from sdpo_ray.errors import ConfigError
from sdpo_ray.redaction import EntityType, Redactor

ALL = tuple(EntityType)
REDACTOR = Redactor(ALL, phone_regions=("US", "GB", "DE"))
PIECES = st.one_of(
    st.sampled_from(
        [
            "jane.doe+news@mail.example.co.uk",
            "+44 20 7946 0958",
            "(202) 555-0123",
            "4111 1111 1111 1111",
            "4111111111111111",
            "DE89 3704 0044 0532 0130 00",
            "192.168.7.9",
            "2001:db8::8a2e:370:7334",
            "AKIA" + "IOSFODNN7EXAMPLE",
            "://user:pass@host",
            "-----BEGIN PRIVATE KEY-----",
            "-----END PRIVATE KEY-----",
            "[email]",
            "[card]",
            "phone",
            "\\n",
        ]
    ),
    st.text(st.sampled_from(' \t\n.,-:@/+()[]_%\\"0123456789abefhijkosxyzDEAKI\u00e9\u662f'), max_size=12),
)
TEXTS = st.lists(PIECES, max_size=12).map("".join)


def test_every_entity_is_replaced_by_its_kind_and_counted() -> None:
    text = "I am jane@example.com, +44 20 7946 0958, card 4111 1111 1111 1111; jane@example.com again."
    expected = "I am [email], [phone], card [card]; [email] again."
    assert REDACTOR.redact(text) == (expected, Counter(email=2, phone=1, card=1))


def test_a_text_without_entities_stays() -> None:
    text = "What is the capital of France? [email] me the 3 biggest towns by 2024-05-01."
    redacted, counts = REDACTOR.redact(text)
    assert redacted == text
    assert not counts
    assert REDACTOR.redact("") == ("", Counter())


def test_only_the_configured_kinds_are_redacted() -> None:
    text = "jane@example.com or 4111111111111111"
    assert Redactor(["card"]).redact(text) == ("jane@example.com or [card]", Counter(card=1))
    assert Redactor([]).redact(text) == (text, Counter())
    assert tuple(Run().capture.redact) == ALL, "a run looks for every kind unless told otherwise"


def test_of_overlapping_entities_the_longest_is_replaced() -> None:
    assert REDACTOR.redact("https://jane:pw@10.1.2.3/")[0] == "https://[secret]@[ip]/"
    token = "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "tYWlsIjoiYUBiLmNjIn0.c2lnbmF0dXJl"
    assert REDACTOR.redact(f"{token}@example.com")[0] == "[email]", "the token is the address's local part"


@settings(deadline=None, max_examples=400)
@given(text=TEXTS)
def test_a_second_pass_finds_nothing(text: str) -> None:
    redacted, counts = REDACTOR.redact(text)
    assert REDACTOR.redact(redacted) == (redacted, Counter())
    assert (redacted == text) is (not counts)
    assert REDACTOR.redact(text) == (redacted, counts)


@settings(deadline=None, max_examples=200)
@given(before=TEXTS, after=TEXTS)
def test_an_address_is_found_whatever_stands_around_it(before: str, after: str) -> None:
    assert "quillon.marsh" not in REDACTOR.redact(f"{before} quillon.marsh@example.org {after}")[0]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXTS | st.just(4111111111111111),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=200)
@given(value=VALUES)
def test_json_stays_json_and_a_second_pass_finds_nothing(value: object) -> None:
    redacted, counts = REDACTOR.redact_json(json.dumps(value))
    assert (redacted == json.dumps(value)) is (not counts)
    json.loads(redacted)
    assert REDACTOR.redact_json(redacted) == (redacted, Counter())


def test_keys_values_and_numbers_of_a_json_text_are_redacted_and_the_rest_stays_as_it_is_written() -> None:
    text = '{ "jane@example.com": [4111111111111111, 1.50, -0, 1e400, {"ip":"10.1.2.3"}],\n"ok": null, "n": 17 }'
    redacted, counts = REDACTOR.redact_json(text)
    assert redacted == '{ "[email]": ["[card]", 1.50, -0, 1e400, {"ip":"[ip]"}],\n"ok": null, "n": 17 }'
    assert counts == Counter(email=1, card=1, ip=1)


def test_the_key_of_a_json_value_says_what_it_is() -> None:
    text = (
        '{"phone": "2025550123", "mobilePhones" : [2025550123], "id": 2025550123, "Authorization": "Bearer abc123de"}'
    )
    expected = (
        '{"phone": "[phone]", "mobilePhones" : ["[phone]"], "id": 2025550123, "Authorization": "Bearer [secret]"}'
    )
    assert REDACTOR.redact_json(text) == (expected, Counter(phone=2, secret=1))
    assert REDACTOR.redact_json('{"a@b.cc": "10.1.2.3"}')[0] == '{"[email]": "[ip]"}'


def test_json_escapes_hide_nothing() -> None:
    assert REDACTOR.redact_json('["jane\\u0040example.com", "\\u0034111111111111111"]')[0] == '["[email]", "[card]"]'
    assert REDACTOR.redact_json('"x\\n4111111111111111\\u00e9\\ud800"')[0] == '"x\\n4111111111111111\\u00e9\\ud800"'
    assert json.loads(REDACTOR.redact_json('"\\ud800 \\n4111111111111111"')[0]) == "\ud800 \n[card]"


@pytest.mark.parametrize("text", ["", "no {json: jane@example.com", "[" * 200_000 + "jane@example.com"])
def test_text_that_is_not_json_is_redacted_as_text(text: str) -> None:
    assert REDACTOR.redact_json(text)[0] == text.replace("jane@example.com", "[email]")


def test_a_number_too_long_for_python_is_still_json() -> None:
    digits = "1" * 10_000
    assert REDACTOR.redact_json(f'[{digits}, "a@example.com"]')[0] == f'[{digits}, "[email]"]'


def test_an_entity_revealed_by_replacing_its_neighbour_is_found() -> None:
    assert REDACTOR.redact("jane@example.com4111111111111111")[0] == "[email][card]"


def test_adversarial_text_that_reveals_entity_after_entity_is_replaced_whole() -> None:
    key = "AIza" + "0123456789abcdefghijklmnopqrstuvwxy"
    redacted, counts = REDACTOR.redact(f"before {key * 1000} after")
    assert redacted == "before " + "[secret]" * 5
    assert counts == Counter(secret=5)


HOSTILE = [
    *("a", "1", "@", "a.", "a@a.", "a@a.aa@", "1.", "1.1.1.1 ", "1 ", "11 ", "4111 ", "4111111111111111 ", "+", "("),
    *("a:", "::", "a:a:a:a:a:a:a:a ", "DE89 ", "DE89370400440532013000 ", "sk-1", "eyJ", "eyJaaaaaaaa.", "ghp_", "-"),
    *("-----BEGIN PRIVATE KEY-----", "://a:", "://a:b@", "authorization: bearer ", "\\n1", "[", "[email]", " "),
]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("unit", HOSTILE)
def test_redaction_time_is_linear_in_the_length_of_the_text(unit: str) -> None:
    """In quadratic time each of them would take hours."""
    text = (unit * 100_000)[:100_000]
    redacted, counts = REDACTOR.redact(text)
    assert (redacted == text) is (not counts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": ["mail"]}, "capture.redact: mail: there are email, phone, card, iban, ip, secret"),
        ({"kinds": ["phone"], "phone_regions": ["UK"]}, "capture.phone_regions: UK: "),
    ],
)
def test_unknown_kinds_regions_and_entities_are_refused(arguments: dict[str, list[str]], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Redactor(**arguments)  # type: ignore[arg-type]


def test_a_missing_presidio_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "presidio_analyzer", None)
    with pytest.raises(ConfigError, match=r"pip install 'sdpo-ray\[pii\]'"):
        Redactor([], presidio=["US_SSN"])
