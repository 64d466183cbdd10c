"""Planted secrets: visibly fake, different from each other, the same on every run, and valid where a check exists."""
# ruff: noqa: RUF001 - Chinese punctuation

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote

__all__ = ["ENVIRONMENT", "LM_HEADER", "LM_KEY", "PER_CALL_HEADER", "Secret", "forms", "named", "planted"]


@dataclass(frozen=True)
class Secret:
    """One planted value.

    Attributes:
        kind: What it is.
        text: A sentence as somebody would write it, with the value in it.
        values: The parts of it that must not be seen anywhere.
        credential: Whether it must not leave even where content is asked for raw.
        bare: Whether the value says by its own form what it is, so that it can stand in a name.
    """

    kind: str
    text: str
    values: tuple[str, ...]
    credential: bool
    bare: bool = False


def _letters(seed: str, length: int, alphabet: str) -> str:
    stream = b""
    while len(stream) < length:
        stream += hashlib.sha256(f"{seed}{len(stream)}".encode()).digest()
    return "".join(alphabet[byte % len(alphabet)] for byte in stream[:length])


_ALNUM = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz0123456789"
_HEX = "0123456789abcdef"
_UPPER = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"


def _drawn(seed: str, length: int, alphabet: str = _ALNUM) -> str:
    """Characters that look drawn at random, with EXAMPLE in front where the alphabet has the letters."""
    mark = "EXAMPLE7" if set("EXAMPL") <= set(alphabet) and length >= 16 else ""
    return mark + _letters(seed, length - len(mark), alphabet)


def _luhn(front: str) -> str:
    digits = [int(char) for char in front]
    doubled = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
    total = sum(digit if at % 2 else doubled[digit] for at, digit in enumerate(digits[::-1]))
    return front + str(-total % 10)


def _resident(region: str, birthday: str, order: int) -> str:
    front = f"{region}{birthday}{order:03d}"
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    return front + "10X98765432"[sum(w * int(d) for w, d in zip(weights, front, strict=True)) % 11]


def _iban(country: str, account: str) -> str:
    number = "".join(str(int(char, 36)) for char in account + country + "00")
    return f"{country}{98 - int(number) % 97:02d}{account}"


def _pii() -> Iterator[Secret]:
    def pii(kind: str, text: str, *values: str, bare: bool = False) -> Secret:
        return Secret(kind, text, values, credential=False, bare=bare)

    for n in range(14):
        mail = f"jo.example{n}@mail{n}.example.com"
        yield pii("email", f"Write to {mail} today.", mail, bare=True)
        beside = f"zhang{n}.example@example{n}.cn"
        yield pii("email beside Chinese", f"邮箱{beside}收到请回复", beside)
        encoded = f"li.example{n}%40example{n}.org"
        yield pii("email, percent-encoded", f"GET /users?mail={encoded}&page=2", encoded)
    for n in range(5):
        wide = f"用户{n}例@例子{n}.公司"
        yield pii("email, internationalised", f"contact {wide} please", wide)
        latin = f"josé.example{n}@éxample{n}.com"
        yield pii("email, accents", f"Mail {latin} ok", latin)
    for n in range(10):
        mobile = f"138{n}555{1000 + n * 37}"
        spaced = f"139 {1000 + n * 13} {2000 + n * 7}"
        yield pii("phone, China", f"手机{mobile}，谢谢", mobile, bare=True)
        yield pii("phone, China, spaced", f"电话 {spaced} 找王工", spaced)
    for n in range(8):
        e164 = f"+4420794{60000 + n * 911:05d}"
        yield pii("phone, E.164", f"call {e164} now", e164, bare=True)
        nanp = f"(415) 555-0{100 + n}"
        yield pii("phone, North America", f"Phone {nanp}, extension 2", nanp)
    for n in range(8):
        card = _luhn(f"4111222233{n}3444"[:15])
        yield pii("card", f"card {card} expires 2031", card, bare=True)
        master = _luhn(f"55000{n}1111222233"[:15])
        grouped = " ".join(master[at : at + 4] for at in range(0, 16, 4))
        yield pii("card, grouped", f"My card number is {grouped}.", grouped)
    for n in range(10):
        person = _resident(("110105", "320102", "440106")[n % 3], f"19{70 + n}0{1 + n % 9}1{n}", 200 + n)
        yield pii("resident id", f"身份证{person}已核验", person, bare=True)
    for n in range(5):
        iban = _iban("DE", f"3704004405320{n:05d}")
        yield pii("iban", f"IBAN {iban} please", iban, bare=True)
        grouped = _iban("GB", f"NWBK601613319{n:05d}")
        grouped = " ".join(grouped[at : at + 4] for at in range(0, len(grouped), 4))
        yield pii("iban, grouped", f"pay to {grouped} now", grouped)
    for n in range(6):
        yield pii("ssn", f"SSN {123 + n}-4{n}-67{80 + n} on file", f"{123 + n}-4{n}-67{80 + n}", bare=True)
    for n in range(8):
        yield pii("ip", f"client 203.0.113.{40 + n} connected", f"203.0.113.{40 + n}", bare=True)
        yield pii("ip", f"peer [2001:db8::{n + 1}a1f]:443 refused", f"2001:db8::{n + 1}a1f")


def _family_keys() -> Iterator[tuple[str, str]]:
    """Keys of providers, by the forms they document."""
    for lead, length, alphabet in (
        ("sk-proj-", 48, _ALNUM), ("sk-ant-api03-", 90, _ALNUM), ("sk-or-v1-", 64, _HEX), ("hf_", 34, _ALNUM),
        ("gsk_", 52, _ALNUM), ("xai-", 80, _ALNUM), ("pplx-", 48, _ALNUM), ("r8_", 37, _ALNUM), ("AIza", 35, _ALNUM),
        ("nvapi-", 64, _ALNUM), ("csk-", 48, _ALNUM), ("tvly-dev-", 32, _ALNUM), ("pcsk_", 60, _ALNUM),
        ("ghp_", 36, _ALNUM), ("gho_", 36, _ALNUM), ("ghs_", 36, _ALNUM), ("github_pat_", 60, _ALNUM),
        ("glpat-", 20, _ALNUM), ("npm_", 36, _ALNUM), ("pypi-AgE", 80, _ALNUM), ("dckr_pat_", 27, _ALNUM),
        ("sgp_", 40, _HEX), ("sqp_", 40, _HEX), ("lin_api_", 40, _ALNUM), ("ntn_", 46, _ALNUM), ("figd_", 40, _ALNUM),
        ("AKIA", 16, _UPPER), ("ASIA", 16, _UPPER), ("LTAI", 20, _ALNUM), ("AKID", 32, _ALNUM), ("dop_v1_", 64, _HEX),
        ("dapi", 32, _HEX), ("sbp_", 40, _HEX), ("hvs.", 90, _ALNUM), ("tskey-auth-", 40, _ALNUM), ("glc_", 60, _ALNUM),
        ("NRAK-", 27, _UPPER), ("phx_", 43, _ALNUM), ("sk_live_", 24, _ALNUM), ("rk_live_", 24, _ALNUM),
        ("whsec_", 32, _ALNUM), ("shpat_", 32, _HEX), ("rzp_live_", 14, _ALNUM), ("xoxb-", 48, _ALNUM),
        ("xoxp-", 60, _ALNUM), ("xkeysib-", 0, _HEX), ("key-", 32, _HEX), ("SG.", 0, _ALNUM), ("glsa_", 0, _ALNUM),
        ("lsv2_pt_", 0, _HEX), ("jina_", 60, _ALNUM), ("fw_", 24, _ALNUM), ("rubygems_", 48, _HEX), ("pul-", 40, _HEX),
    ):  # fmt: skip
        special = {
            "xkeysib-": f"{_drawn('brevo', 64, _HEX)}-{_drawn('brevo2', 16)}",
            "SG.": f"{_drawn('grid', 22)}.{_drawn('grid2', 43)}",
            "glsa_": f"{_drawn('grafana', 32)}_{_drawn('grafana2', 8, _HEX)}",
            "lsv2_pt_": f"{_drawn('chain', 32, _HEX)}_{_drawn('chain2', 10, _HEX)}",
        }
        yield lead, lead + (special.get(lead) or _drawn(lead, length, alphabet))


def _pem(n: int) -> str:
    body = base64.b64encode(f"EXAMPLE private key number {n} ".encode() * 9).decode()
    lines = [body[at : at + 64] for at in range(0, len(body), 64)]
    return "-----BEGIN PRIVATE KEY-----\n" + "\n".join(lines) + "\n-----END PRIVATE KEY-----"


def _jwt(n: int) -> str:
    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'HS256'})}.{part({'sub': f'EXAMPLE{n}'})}.{_drawn(f'jwt{n}', 43)}"


def _headers_and_urls() -> Iterator[Secret]:
    def credential(kind: str, text: str, *values: str, bare: bool = False) -> Secret:
        return Secret(kind, text, values, credential=True, bare=bare)

    for n in range(5):
        word = _drawn(f"url{n}", 18)
        yield credential("url password", f"connect postgres://app:{word}@db{n}.internal:5432/x failed", word)
        yield credential("url token", f"GET https://api{n}.example.com/v1?access_token={word}q&x=1", f"{word}q")
        token = _jwt(n)
        yield credential("jwt", f"token expired: {token} (HS256)", token, bare=True)
        pem = _pem(n)
        yield credential("pem", f"loaded\n{pem}\ndone", *pem.splitlines()[1:-1])
        yield credential("pem, escaped", json.dumps({"note": f"{_pem(n + 50)}"}), *_pem(n + 50).splitlines()[1:-1])
        bearer = _drawn(f"bearer{n}", 40)
        yield credential("authorization", f"curl -H 'Authorization: Bearer {bearer}' https://example.com", bearer)
        basic = base64.b64encode(f"user{n}:EXAMPLE{n}pass".encode()).decode()
        yield credential("authorization", f"authorization: Basic {basic}", basic)
        cookie = _drawn(f"cookie{n}", 26)
        yield credential("cookie", f"Cookie: session={cookie}; theme=dark", cookie)
    for lead, key in _family_keys():
        yield credential(f"key {lead}", f"use {key} for it", key, bare=True)


def _assignments() -> Iterator[Secret]:
    for n in range(5):
        for kind, form in (
            ("plain", "password={} user=bob"), ("json", '{{"api_key": "{}", "n": 1}}'),
            ("escaped json", 'body {{\\"client_secret\\": \\"{}\\"}} sent'), ("repr", "Config(db_password='{}', n=1)"),
            ("flag", "run --api-key {} --verbose"), ("yaml", "secret_key: {}\nregion: eu"), ("chinese", "密码：{}"),
            ("dict", "{{'auth_token': '{}'}}"),
        ):  # fmt: skip
            value = _drawn(f"{kind}{n}", 22)
            yield Secret(f"key=value, {kind}", form.format(value), (value,), credential=True)


ENVIRONMENT = {f"LEAKTEST{n}_API_KEY": _drawn(f"environment{n}", 24) for n in range(4)}
"""Variables of this process; the values say nothing by their form."""
LM_KEY = _drawn("lm api key", 30)
LM_HEADER = _drawn("lm header", 30)
PER_CALL_HEADER = _drawn("call header", 30)


def planted() -> list[Secret]:
    """All secrets, mixed, so that every part of the list has every kind."""
    everything = [*_pii(), *_headers_and_urls(), *_assignments()]
    for name, value in ENVIRONMENT.items():
        everything.append(Secret(f"environment {name}", f"the vault said {value} again", (value,), credential=True))
    for kind, value in (("lm api_key", LM_KEY), ("lm header", LM_HEADER)):
        everything.append(Secret(kind, f"we use {value} there", (value,), credential=True))
    return [secret for start in range(11) for secret in everything[start::11]]


def named(secrets: list[Secret]) -> list[Secret]:
    """Those whose value can stand in a name: of a program, tool, model, data set, class or score."""
    return [secret for secret in secrets if secret.bare]


def forms(value: str) -> set[str]:
    """How a value may be spelled in what leaves: as it is, in JSON, percent-encoded."""
    return {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1], quote(value, safe="")}
