"""Checks that tell a private number from one that only looks like it.

Each takes a candidate whose digits are already ASCII and whose separators are gone, unless it says otherwise, and
answers in a few microseconds without tables from the network.
"""
# ruff: noqa: PLR2004 - lengths and ranges of the formats are the subject here

from __future__ import annotations

import ipaddress
from typing import Final, Literal

__all__ = ["IpScope", "card_issuer", "cn_resident_id", "iban", "ip_scope_includes", "luhn", "us_ssn"]

IpScope = Literal["public", "private", "all"]

_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)


def luhn(digits: str) -> bool:
    """Whether the last digit is the mod-10 check digit (ISO/IEC 7812-1, annex B)."""
    total = 0
    for place, char in enumerate(reversed(digits)):
        value = ord(char) - 48
        total += _DOUBLED[value] if place & 1 else value
    return total % 10 == 0


_FOUR_DIGIT_ISSUERS: Final = frozenset(
    {"2131", "1800", "5018", "5019", "5020", "5038", "5060", "5893", "6304", "6759", "6761", "6762", "6763", "9792"}
)


def card_issuer(digits: str) -> bool:
    """Whether a payment card network issues numbers with this beginning and length.

    Ranges: https://en.wikipedia.org/wiki/Payment_card_number#Issuer_identification_number_(IIN). Times in milli-,
    micro- and nanoseconds begin with 17 or 18 until 2033 and are therefore never cards.
    """
    size, two, three, four = len(digits), int(digits[:2]), int(digits[:3]), int(digits[:4])
    if digits[0] == "4":  # Visa
        return size in (13, 16, 19)
    if 51 <= two <= 55 or 2221 <= four <= 2720:  # Mastercard
        return size == 16
    if two in (34, 37):  # American Express
        return size == 15
    if 300 <= three <= 305 or three == 309 or two in (36, 38, 39):  # Diners Club
        return 14 <= size <= 19
    if 3528 <= four <= 3589 or digits[:4] in ("2131", "1800"):  # JCB
        return 15 <= size <= 19
    if two in (62, 81, 60, 64, 65, 82):  # UnionPay, Discover, RuPay
        return 16 <= size <= 19 or (two == 60 and size == 16)
    if 2200 <= four <= 2204 or digits[:4] == "9792":  # Mir, Troy
        return 16 <= size <= 19
    return (digits[:4] in _FOUR_DIGIT_ISSUERS or two in (56, 57, 58, 63, 67)) and 12 <= size <= 19  # Maestro, Verve


_ID_WEIGHTS: Final = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
_ID_CHECKS: Final = "10X98765432"


def cn_resident_id(number: str) -> bool:
    """Whether 18 characters are a Chinese resident identity number: province, date and check digit (GB 11643-1999)."""
    if len(number) != 18 or not number[:17].isdigit() or not _date(number[6:10], number[10:12], number[12:14]):
        return False
    if not 11 <= int(number[:2]) <= 91:
        return False
    total = sum(weight * (ord(char) - 48) for weight, char in zip(_ID_WEIGHTS, number, strict=False))
    return _ID_CHECKS[total % 11] == number[17].upper()


def cn_resident_id_15(number: str) -> bool:
    """Whether 15 digits are an old Chinese identity number: province and two-digit-year date; it has no check digit."""
    return 11 <= int(number[:2]) <= 65 and _date("19" + number[6:8], number[8:10], number[10:12])


def _date(year: str, month: str, day: str) -> bool:
    return 1850 <= int(year) <= 2100 and 1 <= int(month) <= 12 and 1 <= int(day) <= 31


def us_ssn(digits: str) -> bool:
    """Whether nine digits can be a US social security number (area not 000, 666 or 9xx, no part all zero).

    https://www.ssa.gov/employer/randomization.html
    """
    area = digits[:3]
    return area not in ("000", "666") and area[0] != "9" and digits[3:5] != "00" and digits[5:] != "0000"


_IBAN_LENGTHS: Final = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BI": 27, "BR": 29,
    "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27, "DK": 18, "DO": 28, "EE": 20, "EG": 29,
    "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28,
    "HR": 21, "HU": 28, "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28,
    "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MN": 20,
    "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23, "PK": 24, "PL": 28, "PS": 29, "PT": 25,
    "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24, "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27,
    "SO": 23, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip
"""Length by country: SWIFT, IBAN Registry, https://www.swift.com/standards/data-standards/iban-international-bank-account-number"""


def iban_length(country: str) -> int | None:
    """How many characters an IBAN of the country has; ``None`` for a country without IBANs."""
    return _IBAN_LENGTHS.get(country)


def iban(number: str) -> bool:
    """Whether an upper-case IBAN without spaces has its country's length and a valid check (ISO 7064, mod 97-10)."""
    if _IBAN_LENGTHS.get(number[:2]) != len(number) or not number.isascii() or not number.isalnum():
        return False
    return int("".join(str(int(char, 36)) for char in number[4:] + number[:4])) % 97 == 1


def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read an address with ASCII digits; ``None`` when it is not one."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def ip_scope_includes(text: str, scope: IpScope) -> bool:
    """Whether an address belongs to what is to be redacted.

    Args:
        text: The address, without port, brackets or zone.
        scope: ``public`` leaves out private networks (RFC 1918, RFC 4193) and link-local addresses; ``private`` takes
            these too and leaves out loopback, unspecified and broadcast addresses, which say nothing about anybody;
            ``all`` takes every address.
    """
    if ":" not in text:
        return _v4_scope_includes(text, scope)
    address = ip_address(text)
    if address is None or scope == "all":
        return address is not None
    if address.is_loopback or address.is_unspecified:
        return False
    return scope == "private" or not (address.is_link_local or _internal(address))


def _v4_scope_includes(text: str, scope: IpScope) -> bool:
    parts = [int(part) for part in text.split(".")]
    if len(parts) != 4 or max(parts) > 255:
        return False
    if scope == "all":
        return True
    first, second = parts[0], parts[1]
    if first == 127 or parts in ([0, 0, 0, 0], [255, 255, 255, 255]):
        return False
    internal = first == 10 or (first == 172 and 16 <= second <= 31) or (first, second) in ((192, 168), (169, 254))
    return scope == "private" or not internal


_UNIQUE_LOCAL: Final = ipaddress.ip_network("fc00::/7")  # RFC 4193


def _internal(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address in _UNIQUE_LOCAL
