"""Telephone numbers, e-mail, web, network and street addresses in a text that could be somebody's.

A made-up one may be real. What standards reserve for documentation is let through: RFC 2606 and 6761 names, RFC 5737
and 3849 networks, 555-01xx numbers, and what is evidently to be filled in.
"""

from __future__ import annotations

import ipaddress
import re

_RESERVED_HOST = re.compile(r"^(localhost|([\w-]+\.)*(example(\.(com|org|net))?|test|invalid|local))$", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"/[A-Z]{2,}\b|<|\{|\$")
_E_MAIL = re.compile(r"[\w.+-]+@([\w-]+(?:\.[\w-]+)+)")
_URL = re.compile(r"(?:https?://|\bwww\.)([\w.-]+)(\S*)", re.IGNORECASE)
_PHONE = re.compile(r"(?<![\w.,])\+?\(?\d[\d() ./-]{6,}\d(?![\w.,]\d)")
_DATE_OR_ADDRESS = re.compile(r"\b\d{4}-\d{2}-\d{2}\b|\b\d{2}[-./]\d{2}[-./]\d{4}\b|\b\d{1,3}(\.\d{1,3}){3}\b")
_NETWORK = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w.]*\w)")
_PUBLIC_RESOLVERS = ("1.1.1.1", "1.0.0.1", "8.8.8.8", "8.8.4.4", "9.9.9.9")  # everybody's, and known as such
_NAME = r"(?:[A-ZÀ-ÖØ-Þ][\w'’.-]*\s+){1,3}"
_STREET = re.compile(
    rf"\b\d{{1,5}}[A-Za-z]?,?\s+{_NAME}"
    r"(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Boulevard|Blvd|Court|Crescent|Terrace|Close|Square|Highway)\b"
    # the number last: French, Spanish, Portuguese, Italian, Indonesian
    r"|\b(?:Rue|Calle|Rua|Via|Viale|Avenida|Avenue|Carrera|Jalan|Jl\.)\s+(?:(?:de|del|da|do|la|las|los|di)\s+)*"
    rf"{_NAME}(?:No\.?\s*|n[º°.]\s*|#\s*|,\s*)?\d{{1,5}}\b"
    # and German, Dutch, Scandinavian, where the name ends in the word for street
    r"|\b[A-ZÄÖÜÅÆØ]\w+(?:straße|strasse|gasse|weg|platz|laan|straat|gade|gatan|vägen|veien)\s+\d{1,4}[a-z]?\b"
)


def contacts(text: str) -> list[str]:
    """Everything in a text that somebody could be reached or found by."""
    return telephone_numbers(text) + addresses(text) + network_addresses(text) + street_addresses(text)


def telephone_numbers(text: str) -> list[str]:
    """What could be dialled: nine digits or more in groups, or after a plus; fictional 555-01xx apart."""
    found = [match.group() for match in _PHONE.finditer(_DATE_OR_ADDRESS.sub(" ", text))]
    grouped = [number for number in found if number.startswith("+") or re.search(r"\d[() ./-]+\d", number)]
    return [n for n in grouped if sum(c.isdigit() for c in n) >= 9 and not re.search(r"555[ .-]?01\d\d$", n)]


def addresses(text: str) -> list[str]:
    """E-mail addresses and URLs that could be somebody's."""
    mail = [m.group() for m in _E_MAIL.finditer(text) if not _RESERVED_HOST.match(m.group(1))]
    urls = [
        m for m in _URL.finditer(text) if not _RESERVED_HOST.match(m.group(1)) and not _PLACEHOLDER.search(m.group(2))
    ]
    return mail + [m.group() for m in urls]


def network_addresses(text: str) -> list[str]:
    """IPv4 addresses on the public internet, the well-known resolvers apart."""
    found = []
    for match in _NETWORK.finditer(text):
        try:
            address = ipaddress.IPv4Address(match.group())
        except ValueError:
            continue
        # 1.2.3.4 is how version numbers and examples look
        if address.is_global and match.group() not in (*_PUBLIC_RESOLVERS, "1.2.3.4"):
            found.append(match.group())
    return found


def street_addresses(text: str) -> list[str]:
    """A street with a house number."""
    return [match.group() for match in _STREET.finditer(text)]
