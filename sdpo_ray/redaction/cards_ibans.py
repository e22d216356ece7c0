"""Find payment card numbers and bank accounts (IBAN) in a text, validated by their check digits."""

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

from stdnum import iban, luhn

_SPACE = " \u00a0\u2007\u2009\u202f"
_DASH = ".\u2010\u2011\u2013-"
_GROUP = re.compile(r"\d+")
_RUN = re.compile(rf"\d+(?:(?:[{_SPACE}]?[{_DASH}][{_SPACE}]?|[{_SPACE}]{{1,2}})\d+)*")
"""Groups of digits with the separators that may stand within one number."""
_MAX_GROUPS = 5
_ISSUED = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})"  # Visa
    r"|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}"  # Mastercard
    r"|3[47]\d{13}"  # American Express
    r"|3(?:0[0-5]|[689]\d)\d{11,16}"  # Diners Club
    r"|35(?:2[89]|[3-8]\d)\d{12,15}"  # JCB
    r"|6(?:0|2|5|4[4-9])\d{13,17}|8[12]\d{14,17}"  # Discover, UnionPay, RuPay
    r"|(?:5018|5020|5038|5893|6304|6759|676[1-3])\d{9,15}"  # Maestro
    r"|220[0-4]\d{12,15}|508\d{13}"  # Mir, RuPay
)
"""Ranges of issuer numbers (ISO/IEC 7812) with the lengths in use."""


def cards(text: str) -> Iterator[tuple[int, int]]:
    """Spans [start, end) of numbers of 13 to 19 digits in a known issuer's range with a valid Luhn digit.

    They are written in one piece or in up to five groups with the same separator. Digits of a decimal fraction do not
    count.
    """
    for run in _RUN.finditer(text):
        if run.end() - run.start() < 13:
            continue
        groups = [group.span() for group in _GROUP.finditer(text, *run.span())]
        for first in range(len(groups)):
            for last in range(first, min(first + _MAX_GROUPS, len(groups))):
                if _is_card(text, groups[first : last + 1]):
                    yield groups[first][0], groups[last][1]


def _is_card(text: str, groups: Sequence[tuple[int, int]]) -> bool:
    sizes = [end - start for start, end in groups]
    if not 13 <= sum(sizes) <= 19 or sizes[0] < 4 or min(sizes) < 2:
        return False
    start, end = groups[0][0], groups[-1][1]
    between = {text[before[1] : after[0]] for before, after in pairwise(groups)}
    if len(between) > 1 or not _stands_alone(text, start, end):
        return False
    # int() reads digits of any script.
    number = "".join(str(int(digit)) for first, last in groups for digit in text[first:last])
    return _ISSUED.fullmatch(number) is not None and luhn.is_valid(number)


def _stands_alone(text: str, start: int, end: int) -> bool:
    before, after = text[max(0, start - 2) : start], text[end : end + 2]
    escape = len(before) == 2 and before[0] == "\\" and before[1] in "nrt"
    if (before[-1:].isalnum() and not escape) or after[:1].isalnum():
        return False
    # Only "0," counts as a decimal comma: commas also separate the columns of a table.
    fraction = before == "0," or (before[:1].isdigit() and before[1:] == ".")
    return not fraction and not (after[:1] == "." and after[1:].isdigit())


_TWO_DIGITS = re.compile("[0-9]{2}")
_IBAN = re.compile(
    rf"(?:(?<![0-9A-Za-z])|(?<=\\[nrt]))(?=([A-Za-z]{{2}}[0-9]{{2}}(?:[{_SPACE}.-]?[0-9A-Za-z]){{11,30}}))"
)
_ENDS = re.compile(r"[0-9A-Za-z](?![0-9A-Za-z])")
_NOT_IN_IBAN = re.compile(r"[^0-9A-Za-z]")


def ibans(text: str) -> Iterator[tuple[int, int]]:
    """Spans [start, end) of account numbers (ISO 13616) with their country's structure and a remainder of 1 modulo 97.

    Lower case and groups are allowed. The text after a number may look like further groups, so every end of a group is
    tried.
    """
    if _TWO_DIGITS.search(text) is None:
        return
    for found in _IBAN.finditer(text):
        start, furthest = found.span(1)
        for end in _ENDS.finditer(text, start, min(furthest + 1, len(text))):
            if end.end() <= furthest and iban.is_valid(_NOT_IN_IBAN.sub("", text[start : end.end()])):
                yield start, end.end()
