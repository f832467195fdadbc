"""Passwords and keys in URLs: texts with them come in, and go out without them."""

from __future__ import annotations

from collections.abc import Iterator
import ipaddress
import re
from urllib.parse import unquote, urlsplit

SECRETS = (
    re.compile(
        r'(?P<before>(?:password|passwd|pwd|key|token|secret|signature|sig)=)(?P<secret>[^&\s]+)',
        re.IGNORECASE,
    ),
    re.compile(r'(?P<before>https?://|://[^:/@]*:)(?P<secret>.+)(?=@)', re.IGNORECASE),
)
"""A key among the options of a URL, and a password before its host, which may contain an @. The
user of a web address counts as a secret: many services take a token there."""


def mask_secrets(text: str) -> str:
    """Return a text with the passwords and keys in URLs replaced by ***."""
    for pattern in SECRETS:
        text = pattern.sub(r'\g<before>***', text)
    return text


def secrets_of(url: str) -> Iterator[str]:
    """Yield the passwords and keys of a URL, as they are written and as they are meant."""
    for pattern in SECRETS:
        for match in pattern.finditer(url):
            yield match['secret']
            if (meant := unquote(match['secret'])) != match['secret']:
                yield meant


def is_readable_on_the_way(url: str) -> bool:
    """Return whether what is sent to a web address crosses a network unencrypted."""
    parts = urlsplit(url)
    return parts.scheme == 'http' and not _is_this_machine(parts.hostname or '')


def _is_this_machine(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == 'localhost'
