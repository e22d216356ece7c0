"""Find e-mail addresses and IP addresses in a text.

E-mail addresses follow the practical subset of RFC 5321 and 5322: no comments, no quoted local part, a domain with a
dot; letters of any script in both parts (RFC 6531). The lengths that RFC 5321 allows bound the time per `@`.
"""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address

_MAX_LOCAL = 64
_AT = re.compile("[@\uff20]|%40")
# Matched backwards from the `@`. In scripts without spaces between words, the local part ends where another script
# begins: in "...是zhang@example.com" the characters before "zhang" stay.
_LOCAL_BACKWARDS = re.compile(r"[A-Za-z0-9!#$%&'*+^_~.\u00c0-\u052f-]+|[\w.+-]+")
_DOMAIN = re.compile(
    r"(?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8}(?:[Xx][Nn]--[A-Za-z0-9-]{2,59}|[A-Za-z]{2,63}|[^\W\d_]{2,63})"
)
_NO_DOMAIN = re.compile(r"[1-4]x\.(?:png|jpe?g|gif|webp|svg)\Z|[0-9]+\.[0-9]", re.IGNORECASE)
"""`logo@2x.png` is the name of a file, `react@17.0.0-rc.next` a version of a package."""


def emails(text: str) -> Iterator[tuple[int, int]]:
    """Spans [start, end) of e-mail addresses."""
    for at in _AT.finditer(text):
        domain = _DOMAIN.match(text, at.end())
        if domain is None or _NO_DOMAIN.match(domain[0]):
            continue
        local = _LOCAL_BACKWARDS.match(text[max(0, at.start() - _MAX_LOCAL) : at.start()][::-1])
        start = at.start() - (local.end() if local else 0)
        while start < at.start() and not text[start].isalnum() and text[start] != "_":
            start += 1
        if start < at.start():
            yield start, domain.end()


# Not an address: with a digit or letter next to it, or with a fifth number.
_IPV4 = re.compile(
    r"(?:(?<![0-9A-Za-z])|(?<=\\[nrt]))(?<![0-9]\.)(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9A-Za-z])(?!\.[0-9])"
)
_IPV6 = re.compile(
    r"(?:(?<![0-9A-Za-z])|(?<=\\[nrt]))[0-9A-Fa-f]{0,4}:[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]{0,60}(?:\.[0-9]{1,3}){0,3}"
    r"(?![0-9A-Za-z])"
)
_LONGEST_IPV6 = 47
"""Characters, including one extra colon at each end."""


def ips(text: str) -> Iterator[tuple[int, int]]:
    """Spans [start, end) of addresses that a host may have.

    Loopback, unspecified, multicast and reserved addresses, netmasks included, identify nobody. In IPv6 the reserved
    ranges cover most text that only looks like an address: `a::b` in a program, `::2` in a slice.
    """
    if text.count(".") >= 3:
        yield from (found.span() for found in _IPV4.finditer(text) if _is_host_address(found[0]))
    if text.count(":") < 2:
        return
    for found in _IPV6.finditer(text):
        start, end = found.span()
        if end - start > _LONGEST_IPV6:
            continue
        start += found[0].startswith(":") and not found[0].startswith("::")
        end -= found[0].endswith(":") and not found[0].endswith("::")
        if _is_host_address(text[start:end]):
            yield start, end


def _is_host_address(address: str) -> bool:
    try:
        known: IPv4Address | IPv6Address = ip_address(address)
    except ValueError:
        return False
    return not (known.is_loopback or known.is_unspecified or known.is_multicast or known.is_reserved)
