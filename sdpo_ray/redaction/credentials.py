"""Find secrets in a text by the prefixes that issuers give them for secret scanners.

A secret without a recognisable form, such as a password in a sentence, is not found.
"""

import base64
import binascii
import re
from collections.abc import Iterator

_LEFT = r"(?:(?<![0-9A-Za-z_-])|(?<=\\[nrt]))"
_WORD = "[0-9A-Za-z_-]"
_TOKENS: tuple[tuple[str, str], ...] = (
    ("AKIA", r"AKIA[0-9A-Z]{16}(?![0-9A-Za-z])"),  # AWS access key
    ("ASIA", r"ASIA[0-9A-Z]{16}(?![0-9A-Za-z])"),
    ("gh", r"gh[pousr]_[0-9A-Za-z]{36,255}"),  # GitHub
    ("github_pat_", r"github_pat_[0-9A-Za-z_]{22,255}"),
    ("glpat-", rf"glpat-{_WORD}{{20,}}"),  # GitLab
    ("sk-", rf"sk-(?={_WORD}{{0,80}}[0-9]){_WORD}{{20,}}"),  # OpenAI, Anthropic and others
    ("AIza", rf"AIza{_WORD}{{35}}"),  # Google
    ("ya29.", rf"ya29\.{_WORD}{{20,}}"),
    ("xox", r"xox[abeoprs]-[0-9A-Za-z-]{10,}"),  # Slack
    ("hooks.slack.com", r"hooks\.slack\.com/services/[0-9A-Za-z/]{20,}"),
    ("k_live_", r"[rs]k_live_[0-9A-Za-z]{10,}"),  # Stripe
    ("k_test_", r"[rs]k_test_[0-9A-Za-z]{10,}"),
    ("hf_", r"hf_[0-9A-Za-z]{30,}"),  # Hugging Face
    ("npm_", r"npm_[0-9A-Za-z]{36}"),
    ("pypi-", rf"pypi-AgE{_WORD}{{50,}}"),
    ("SG.", rf"SG\.{_WORD}{{22}}\.{_WORD}{{43}}"),  # SendGrid
    ("eyJ", rf"eyJ{_WORD}{{7,}}\.eyJ{_WORD}{{7,}}\.{_WORD}*"),  # JSON Web Token (RFC 7519)
)
_COMPILED = tuple((needle, re.compile(_LEFT + pattern)) for needle, pattern in _TOKENS)
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?:[^-]|-(?!----))*-----END [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----"
    r"|(?:(?:\s|\\[nr])+[0-9A-Za-z+/=]{20,})+)"
)
"""RFC 7468 and OpenPGP; a truncated key ends with its last long line."""
_URL_PASSWORD = re.compile(r"://([^\s/:@\"'<>]{0,128}:[^\s/@\"'<>]{1,256})@(?=[0-9A-Za-z\[_])")
"""RFC 3986, userinfo that contains a colon."""
_HEADER = re.compile(
    r"(?:authorization[\"']?\s{0,3}[:=]\s{0,3}[\"']?)(bearer|basic|token)\s{1,3}([0-9A-Za-z._~+/-]{8,}={0,2})",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\bBearer\s{1,3}([0-9A-Za-z._~+/-]{20,}={0,2})")
_AWS_SECRET = re.compile(
    r"aws_?secret_?access_?key[\"']?\s{0,3}[:=]{1,2}\s{0,3}[\"']?([0-9A-Za-z/+]{40})(?![0-9A-Za-z/+])", re.IGNORECASE
)


def secrets(text: str) -> Iterator[tuple[int, int]]:
    """Spans [start, end) of tokens, private keys, passwords in URLs and credentials in headers."""
    for needle, pattern in _COMPILED:
        if needle in text:
            yield from (found.span() for found in pattern.finditer(text))
    if "PRIVATE KEY" in text:
        yield from (found.span() for found in _PRIVATE_KEY.finditer(text))
    if "://" in text:
        yield from (found.span(1) for found in _URL_PASSWORD.finditer(text))
    if "earer" in text:
        yield from (found.span(1) for found in _BEARER.finditer(text) if _has_digit(found[1]))
    lowered = text.lower()
    if "authorization" in lowered:
        for found in _HEADER.finditer(text):
            scheme, value = found[1].lower(), found[2]
            # Not secrets: `Bearer YOUR_API_KEY` in documentation, `Basic authentication` in prose.
            if _is_user_and_password(value) if scheme == "basic" else _has_digit(value):
                yield found.span(2)
    if "secret" in lowered:
        yield from (found.span(1) for found in _AWS_SECRET.finditer(text))


def _has_digit(value: str) -> bool:
    return any(letter.isdigit() for letter in value)


def _is_user_and_password(value: str) -> bool:
    try:
        return b":" in base64.b64decode(value, validate=True)
    except binascii.Error:
        return False
