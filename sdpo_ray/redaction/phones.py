"""Find phone numbers in a text, validated against the numbering plans of `phonenumbers`."""

import re
from collections.abc import Iterator, Sequence

from sdpo_ray.errors import ConfigError

_ENOUGH_DIGITS = re.compile(r"\d(?:[^\w\n]{0,4}\d){6}")
"""Seven digits: shorter numbers cannot be called from another town."""
_INTERNATIONAL = re.compile(r"[+\uff0b]\(?\d|00[1-9]")
_TRUNK = re.compile(r"\(?0[1-9]")
_SOMETHING_ELSE = re.compile(
    r"\W*\d+\.\d+"  # a decimal fraction
    r"|\d{1,2}([-./])\d{1,2}\1\d{4}"  # a date
    r"|\d{5}-\d{4}"  # a ZIP code
)
_PART_BEFORE = re.compile(r"(?:\d\.|\b0,|\w[-#])\Z")
_PART_AFTER = re.compile(r"-\w|\.\d")
"""Parts of a decimal fraction, or of an id such as `J-0401000-03`."""
_MIN_TRUNK_DIGITS = 9
_ALL = 2**62
_UNCLOSED = re.compile(r"(?:[(\[\uff08](?!\+?\d+[)\]\uff09]))+")
"""Opening brackets before the number that do not enclose its first digits."""
_CUE_CHARS = 40
_CUE = re.compile(
    r"(?:\b|_)(?:phone|mobile|cell|tel|telephone|telefon|handy|fax|call|text|sms|ring|dial|whatsapp|contact|reach|my)"
    r"(?:phone)?s?(?:[ _-]?(?:number|nummer|num|no|nr)s?)?\b[^\d\n]{0,16}\Z",
    re.IGNORECASE,
)
"""A word that announces a phone number; also a JSON key such as `phone_number` or `mobilePhone`."""


class PhoneRecognizer:
    """Finds numbers in the international format, and in the national format of each of `regions` (ISO 3166 codes).

    Raises ConfigError for an unknown region.
    """

    def __init__(self, regions: Sequence[str]) -> None:
        import phonenumbers

        if unknown := sorted(set(regions) - set(phonenumbers.SUPPORTED_REGIONS)):
            raise ConfigError(f"capture.phone_regions: {', '.join(unknown)}: no ISO 3166 code such as 'US' or 'GB'")
        self._trunks: dict[str | None, str | None] = {
            region: phonenumbers.ndd_prefix_for_region(region, True) for region in regions
        }
        self._trunks = self._trunks or {None: None}

    def __call__(self, text: str) -> Iterator[tuple[int, int]]:
        """Spans [start, end) of phone numbers."""
        if _ENOUGH_DIGITS.search(text) is None:
            return
        from phonenumbers import Leniency, PhoneNumberMatcher

        for region, trunk in self._trunks.items():
            for found in PhoneNumberMatcher(text, region, leniency=Leniency.VALID, max_tries=_ALL):
                unclosed = _UNCLOSED.match(found.raw_string)
                start = found.start + (unclosed.end() if unclosed else 0)
                if _is_phone_number(text, start, found.end, region, trunk):
                    yield start, found.end


def _is_phone_number(text: str, start: int, end: int, region: str | None, trunk: str | None) -> bool:
    """Whether digits that are valid in a numbering plan are a phone number; tables and ids hold many such digits.

    A number with `+` counts. In a region with the trunk prefix 0, a national number needs that prefix. In other regions
    the digits must be grouped as the region groups them, or follow a word such as "phone": ten digits in one piece are
    more often an id, and 2147483647 is a valid number in Dallas.
    """
    before, raw = text[max(0, start - _CUE_CHARS) : start], text[start:end]
    if _INTERNATIONAL.match(raw):
        return True
    if _SOMETHING_ELSE.fullmatch(raw) or _PART_BEFORE.search(before) or _PART_AFTER.match(text, end):
        return False
    if trunk is not None and trunk.startswith("0"):
        return _TRUNK.match(raw) is not None and sum(map(str.isdigit, raw)) >= _MIN_TRUNK_DIGITS
    if raw.isdecimal():
        return _CUE.search(before) is not None
    from phonenumbers import Leniency, PhoneNumberMatcher

    return PhoneNumberMatcher(raw, region, leniency=Leniency.STRICT_GROUPING).has_next()
