"""What counts as an address, a number, a secret, and what only looks like one.

The numbers are those that their issuers publish for tests and documents: example.com (RFC 2606), 555-01xx and Ofcom's
drama numbers, card networks' test cards, the examples of the IBAN registry, 192.0.2.0/24 (RFC 5737), 2001:db8::/32
(RFC 3849). Secrets are put together here, so that no scanner takes this file for a leak.
"""

import json
from collections import Counter

import pytest

from sdpo_ray.redaction import EntityType, Redactor
from tests.support.paths import SHARED_DATA

REDACTOR = Redactor(tuple(EntityType), phone_regions=("US", "GB", "DE"))

EMAILS = [
    "jane@example.com",
    "jane.q.doe@example.com",
    "jane+news.x@example.com",
    "JANE@EXAMPLE.COM",
    "jane_doe-1@mail.sub.example.co.uk",
    "o'brien@example.ie",
    "1234567890@example.com",
    "jos\u00e9.garc\u00eda@example.es",
    "jane@b\u00fccher.example",
    "jane@xn--bcher-kva.example",
    "\u7528\u6237@\u4f8b\u5b50.\u5e7f\u544a",
    "jane%40example.com",
    "jane\uff20example.com",
    "x" * 64 + "@example.com",
]
PHONES = [
    "+1 202-555-0123",
    "+1 (202) 555-0123",
    "+12025550123",
    "1-202-555-0123",
    "(202) 555-0123",
    "202-555-0123",
    "202.555.0123",
    "202 555 0123",
    "+44 20 7946 0958",
    "+44 (0)20 7946 0958",
    "020 7946 0958",
    "0207 946 0958",
    "07700 900123",
    "07700900123",
    "0044 20 7946 0958",
    "+49 30 1234567",
    "030/123 45 67",
    "0151 123 456 78",
    "+33 6 12 34 56 78",
    "+86 138 0013 8000",
    "+81-3-1234-5678",
    "\uff0b44 20 7946 0958",
]
CARDS = [
    "4111111111111111",
    "4111 1111 1111 1111",
    "4111-1111-1111-1111",
    "4111\u00a01111\u00a01111\u00a01111",
    "4111 - 1111 - 1111 - 1111",
    "4222222222222",
    "5555 5555 5555 4444",
    "2223003122003222",
    "3782 822463 10005",
    "378282246310005",
    "3056 930902 5904",
    "6011 1111 1111 1117",
    "3530 1113 3330 0000",
    "6200000000000005",
    "\uff14" + "\uff11" * 15,
]
IBANS = [
    "DE89370400440532013000",
    "DE89 3704 0044 0532 0130 00",
    "de89 3704 0044 0532 0130 00",
    "GB29-NWBK-6016-1331-9268-19",
    "FR1420041010050500013M02606",
    "NO93 8601 1117 947",
    "MT84MALT011000012345MTLCAST001S",
    "CH93 0076 2011 6238 5295 7",
    "ES91 2100 0418 4502 0005 1332",
]
IPS = [
    "192.0.2.17",
    "10.20.30.40",
    "2001:db8:85a3:8d3:1319:8a2e:370:7348",
    "2001:db8::1",
    "fe80::1ff:fe23:4567:890a",
    "FD00::12",
]
_LONG = "aB3dE5gH7jK9mN1pQ3sT5vW7yZ9bC1dF3hJ5lM7n"
SECRETS = [
    "AKIA" + "IOSFODNN7EXAMPLE",
    "ASIA" + "IOSFODNN7EXAMPLE",
    "ghp_" + _LONG,
    "gho_" + _LONG,
    "ghs_" + _LONG,
    "github_pat_" + "11ABCDEFG0" + _LONG,
    "glpat-" + _LONG[:20],
    "sk-" + _LONG,
    "sk-proj-" + _LONG,
    "sk-ant-api03-" + _LONG,
    "AIza" + _LONG[:35],
    "xoxb-" + "123456789012-abcdefABCDEF",
    "sk_live_" + _LONG[:24],
    "rk_live_" + _LONG[:24],
    "hf_" + _LONG[:34],
    "npm_" + _LONG[:36],
    "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9",
    "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nMIIEow\nABC=\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN OPENSSH PRIVATE KEY-----\\nb3BlbnNzaC1rZXktdjEA\\n-----END OPENSSH PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC\nMIIEvQIBADANBgkqhkiG9w0BAQEFAASC",
]
POSITIVES = [
    (kind, text)
    for kind, texts in (
        (EntityType.EMAIL, EMAILS),
        (EntityType.PHONE, PHONES),
        (EntityType.CARD, CARDS),
        (EntityType.IBAN, IBANS),
        (EntityType.IP, IPS),
        (EntityType.SECRET, SECRETS),
    )
    for text in texts
]


@pytest.mark.parametrize(("kind", "text"), POSITIVES)
def test_an_entity_is_found_whole_in_a_sentence(kind: EntityType, text: str) -> None:
    for before, after in (
        ("", ""),
        ("It is ", "."),
        ("(", ")"),
        ('{"a": "', '", "b": 1}'),
        ("x:\n", "\nok"),
        ("\u662f ", "\uff0c"),
    ):
        assert REDACTOR.redact(f"{before}{text}{after}") == (f"{before}[{kind}]{after}", {kind: 1})


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("mailto:jane@example.com?subject=x", "mailto:[email]?subject=x"),
        ("<jane@example.com>, **jane@example.com** `jane@example.com`", "<[email]>, **[email]** `[email]`"),
        ("https://example.com/?mail=jane@example.com&x=1", "https://example.com/?mail=[email]&x=1"),
        ("\u6211\u7684\u90ae\u7bb1\u662fjane@example.com", "\u6211\u7684\u90ae\u7bb1\u662f[email]"),
        ("my number is 2025550123", "my number is [phone]"),
        ("WhatsApp: 2025550123!", "WhatsApp: [phone]!"),
        ("12,202-555-0123,4111111111111111,4222222222222,7", "12,[phone],[card],[card],7"),
        ("4111 1111 1111 1111 12/26 123", "[card] 12/26 123"),
        ("4111 1111 1111 1111 123", "[card] 123"),
        ("2. 4111111111111111", "2. [card]"),
        ("a\\n4111111111111111", "a\\n[card]"),
        ("DE89 3704 0044 0532 0130 00 is my account", "[iban] is my account"),
        ("ab12 cd DE89370400440532013000", "ab12 cd [iban]"),
        ("http://192.0.2.17:8080/x, 10.1.0.0/16", "http://[ip]:8080/x, [ip]/16"),
        ("http://[2001:db8::1]:80/ and fe80::1:", "http://[[ip]]:80/ and [ip]:"),
        ("ssh root@192.0.2.17", "ssh root@[ip]"),
        ("postgresql://app:s3cr3t!@db:5432/x", "postgresql://[secret]@db:5432/x"),
        ("https://jane:s3cr3t@example.com/x", "https://jane:[email]/x"),
        ("curl -H 'Authorization: Bearer abc123def456'", "curl -H 'Authorization: Bearer [secret]'"),
        ("Authorization: Basic amFuZTpwYXNzd29yZA==", "Authorization: Basic [secret]"),
        ('{"authorization": "token 0123abcd"}', '{"authorization": "token [secret]"}'),
        ("Bearer 0123456789abcdefghij", "Bearer [secret]"),
        (
            "aws_secret_access_key = " + "wJalrXUtnFEMI/K7MDENG/" + "bPxRfiCYEXAMPLEKEY",
            "aws_secret_access_key = [secret]",
        ),
    ],
)
def test_text_around_an_entity_stays(text: str, redacted: str) -> None:
    assert REDACTOR.redact(text)[0] == redacted


@pytest.mark.parametrize(
    "text",
    [
        # no e-mail address
        "@jane wrote to a@b and jane@localhost",
        "logo@2x.png, react@17.0.0-rc.next, C = A@B.T",
        "@Override, @pytest.mark.skip, 5 @ 3.50",
        # no phone number
        "in 2019, 2020-2021, (1642-1727), 1999/2000",
        "2024-05-01 12:30:00, 01.02.2023, 02-11-2019, 20240501123000",
        "$1,299.00, 1.299.000 EUR, 12 345 678 people",
        "2147483647, 4294967295, 1718035200, 1718035200123",
        "order number 2025550123, id 9876543210, context 2025550123",
        "0.5772156649, -1.7807764064, 3.14159265358979, 512.3456789",
        "2.20 9.11 10.07 1.71 10.78 8.33",
        "978-3-16-148410-0, 03728003-d1ea-4851-abd6-123456789abc",
        "Boston, MA 02110-1301",
        "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
        # no card: a wrong check digit, no issuer, a fraction, an EAN
        "4111111111111112, 4111 1111 1111 1112",
        "1234567812345670, 0000000000000000",
        "0.4111111111111111, 0,4111111111111111, 4111111111111111.5",
        "x4111111111111111, 41111111111111111111",
        "2020 2021 2022 2023",
        # no IBAN: a wrong remainder, no such country, a word
        "DE89370400440532013001, XX89370400440532013000",
        "as12 many words follow here and there and so on",
        # no IP address that names a host
        "127.0.0.1, 0.0.0.0, 255.255.255.0, 224.0.0.1, ::1, ::",
        "version v1.2.3.4, 1.2.3.4.5, 256.1.1.1, 1.2.3",
        "std::vector<int>, a[1::2], DB::abc, 12:30:45, 10::20",
        "aa:bb:cc:dd:ee:ff",
        # no secret
        "sk-learn-and-other-kebab-case-names, sk-short1",
        "Authorization: Bearer YOUR_API_KEY, Authorization: Basic authentication",
        "the standard bearer internationalization",
        "AKIA is a prefix, ghp_ too, hf_hub, eyJ.eyJ, xoxb-",
        "files beginning with -----BEGIN PRIVATE KEY----- are keys of some kind",
        "https://example.com:8080/a@b, http://a:80/",
    ],
)
def test_text_that_only_looks_like_an_entity_stays(text: str) -> None:
    assert REDACTOR.redact(text) == (text, {})


def test_in_ten_thousand_real_texts_one_number_and_one_address_are_found() -> None:
    file = SHARED_DATA / "hh_rlhf" / "derived" / "helpful-base_interactions.jsonl"
    if not file.exists():
        pytest.skip("the conversations of hh_rlhf are not here")
    found: Counter[str] = Counter()
    for line in file.read_text().splitlines():
        record = json.loads(line)
        for message in (record["prompt"][-1], record["completion"], record["user_response"]):
            found += REDACTOR.redact(message["content"])[1]
    assert found == {"phone": 1, "email": 1}


def test_ten_digits_of_one_region_are_not_a_phone_number_in_another() -> None:
    assert Redactor(["phone"], phone_regions=["DE"]).redact("202-555-0123")[1] == {}
    assert Redactor(["phone"], phone_regions=["ES"]).redact("612 34 56 78")[1] == {"phone": 1}
    assert Redactor(["phone"]).redact("202-555-0123 or +34 612 34 56 78")[0] == "202-555-0123 or [phone]"
