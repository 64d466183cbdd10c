r"""Phones, cards, Chinese identity numbers and US social security numbers: all found in one pass over runs of digits.

A run is a stretch of digits with the separators people put between them. Only the run is normalised (full-width and
other digits to ASCII, each separator to space, hyphen or dot), character by character, so that every position in it
is a position in the text. Beside Chinese, ``\b`` sees no boundary, and in ``json.dumps`` output the hex digits of
``\u53f7`` touch the number; the neighbours of a candidate are therefore looked at one by one.

Longer than most files here because the shapes of one pass belong side by side.
"""
# ruff: noqa: PLR2004, RUF001, E501, SIM102 - lengths of the formats, long expressions and Chinese punctuation are the subject here

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from dspy_observe.redaction import validators
from dspy_observe.redaction.shape import Lowered, words_after, words_before

__all__ = ["Run", "cards", "cn_ids", "phones", "runs", "ssns"]

Span = tuple[int, int]

_SPACES = "\u00a0\u2002\u2003\u2009\u202f\u3000"
_HYPHENS = "\u2010\u2011\u2012\u2013\u2014\u2212\uff0d\u200b\u200c\u200d\u2060\ufeff\u00ad"
_DOTS = "\uff0e\u30fb"
_SEPARATORS = " .()-"
_WIDE = _SEPARATORS + _SPACES + _HYPHENS + _DOTS + "\uff08\uff09"
_NORMAL: Final = str.maketrans(
    {
        **dict.fromkeys(_SPACES, " "),
        **dict.fromkeys(_HYPHENS, "-"),
        **dict.fromkeys(_DOTS, "."),
        "\uff08": "(",
        "\uff09": ")",
        "\uff0b": "+",
    }
)

_LONGEST = 62  # characters of one run; a longer stretch is taken in overlapping pieces
_LONGEST_LOCAL = 24  # characters without spaces
_FEWEST = 6  # digits of the shortest telephone number that a word can reveal
_OVERLAP = 26  # no number with its separators is longer

_ESCAPES = r"\\u[0-9a-fA-F]{4}|%[0-9A-Fa-f]{2}|"
_RUN = r"[0-9][0-9 .()\-]{5,60}[0-9]"
_RUN_WIDE = rf"\d[\d{re.escape(_WIDE)}]{{5,60}}\d"
_PLAIN: Final = re.compile(_RUN)
_ESCAPED: Final = re.compile(_ESCAPES + _RUN)
_WIDE_PLAIN: Final = re.compile(_RUN_WIDE)
_WIDE_ESCAPED: Final = re.compile(_ESCAPES + _RUN_WIDE)


_FRACTION: Final = re.compile(
    r"[0-9]{1,60}\.[0-9]{1,60}|(?:19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]"
)  # or a date; never private


_EXTENSION: Final = re.compile(r"(?:[ ]?x|[ ]?ext\.?[ ]?)\d{1,6}(?![0-9A-Za-z])", re.IGNORECASE)


class Run:
    """One stretch of digits and separators.

    Args:
        text: The whole text.
        lowered: The text in lower case, same length; used for words around the run.
        start: Where the run begins in the text.
        end: Where it ends.
        escaped: Whether a JSON or percent escape ends where the run begins.
    """

    __slots__ = ("_after", "_before", "digits", "end", "escaped", "lowered", "plain", "start", "t", "text")

    def __init__(self, text: str, lowered: str, start: int, end: int, escaped: bool) -> None:
        self.text, self.lowered, self.start, self.end, self.escaped = text, lowered, start, end, escaped
        piece = text[start:end]
        if not piece.isascii():
            piece = "".join(str(int(c)) if c.isdecimal() else c for c in piece.translate(_NORMAL))
        self.t = piece
        self.plain = piece.isdigit()
        self.digits = len(piece) if self.plain else sum(map(piece.count, "0123456789"))
        self._before: str | None = None
        self._after: str | None = None

    def before(self, at: int) -> str:
        """The 48 characters before a position of the run, in lower case."""
        if at == 0:
            if self._before is None:
                self._before = words_before(self.text, self.lowered, self.start, 48)
            return self._before
        return words_before(self.text, self.lowered, self.start + at, 48)

    def after(self, at: int) -> str:
        """The 16 characters after a position of the run, in lower case."""
        return words_after(self.text, self.lowered, self.start + at, 16)

    def free(self, i: int, j: int, glued: re.Pattern[str] | None = None) -> bool:
        """Whether ``t[i:j]`` stands alone: no digit, letter, fraction or longer dashed number goes on beside it.

        Args:
            i: Start within the run.
            j: End within the run.
            glued: Words that may touch the number on its left, such as ``tel``.
        """
        return self._free_left(i, glued) and self._free_right(j)

    def _free_left(self, i: int, glued: re.Pattern[str] | None) -> bool:
        at = self.start + i
        if at == 0 or (i == 0 and self.escaped):
            return True
        text = self.text
        char = text[at - 1]
        if char.isdecimal():
            return False
        if char in ".\uff0e-\u2013" or char == ",":
            return char == "," or at < 2 or not text[at - 2].isdecimal()
        if not (char.isascii() and char.isalpha()):
            return True
        if at > 1 and text[at - 2] == "\\" and char in "nrtbf":
            return True
        return glued is not None and glued.search(self.before(i)) is not None

    def _free_right(self, j: int) -> bool:
        at = self.start + j
        text = self.text
        if at >= len(text):
            return True
        char = text[at]
        if char in "xX" and _EXTENSION.match(text, at) is not None:
            return True
        if char.isdecimal() or (char.isascii() and char.isalpha()):
            return False
        return char not in ".-" or at + 1 >= len(text) or not text[at + 1].isdecimal()


_DIGITS: Final = re.compile("[0-9]+")
_LONGEST_ESCAPE: Final = 6  # characters; it may touch a number, or end in what looks like one


def runs(text: str, lowered: Lowered) -> Iterator[Run]:
    """The runs of a text that can hold a number of seven digits or more."""
    escapes = "%" in text or ("\\" in text and "\\u" in text)
    if text.isascii():
        pattern = _ESCAPED if escapes else _PLAIN
        windows = lowered.numbers
    else:
        pattern, windows = _WIDE_ESCAPED if escapes else _WIDE_PLAIN, [(0, len(text))]
    for start, end in windows:
        yield from _runs_within(text, lowered, pattern, max(0, start - _LONGEST_ESCAPE) if escapes else start, end)


def _runs_within(text: str, lowered: str, pattern: re.Pattern[str], at: int, until: int) -> Iterator[Run]:
    escape_end = -1
    search = pattern.search
    while (match := search(text, at, until)) is not None:
        start, end = match.span()
        if text[start] in "\\%":
            at = escape_end = end
            continue
        if end - start < _LONGEST:
            at = end
            if _FRACTION.fullmatch(match.group()) is None:
                run = Run(text, lowered, start, end, start == escape_end)
                if run.digits >= _FEWEST:
                    yield run
            continue
        run = Run(text, lowered, start, end, start == escape_end)
        yield run
        at = _resume(text, run)


def _resume(text: str, run: Run) -> int:
    """Where to go on after a run of full length: at a separator, so that no number is cut in two."""
    t = run.t
    for k in range(len(t) - _OVERLAP, len(t)):
        if not t[k].isdigit():
            return run.start + k + 1
    at = run.end  # one blob of digits: nothing in it stands alone
    while at < len(text) and text[at].isdecimal():
        at += 1
    return at


def _any_of(words: str) -> re.Pattern[str]:
    """A search for words in lower-cased text; ``<tel>`` is a whole word, ``<seq`` the beginning of one.

    Each alternative begins with its literal and looks behind afterwards, so that the engine can skip ahead.
    """
    parts = []
    for word in words.split("|"):
        core = word.strip("<>")
        left = rf"(?<![a-z0-9]{re.escape(core)})" if word.startswith("<") else ""
        parts.append(re.escape(core) + left + ("(?![a-z0-9])" if word.endswith(">") else ""))
    return re.compile("|".join(parts))


# Words. A number is judged by the nearest word before it: what comes later in the text wins.
_PHONE_WORDS: Final = _any_of(
    "phone|<tel>|mobile|<cell>|cellular|<fax>|<dial>|<dialing>|<reach>|contact|whatsapp|<sms>|hotline|<text me>|<call me>|"
    "<call us>|<call him>|<call her>|<call them>|<call at>|<call on>|<call back>|<call my>|<call our>|<call the>|<call>|"
    "<called>|<calling>|<ring>|number is|number was|my number|his number|her number|<gsm>|msisdn|<handy>|telefon|teléfon|"
    "voicemail|callback|landline|<pager>|手机|电话|座机|固话|联系|致电|拨打|热线|传真|客服|来电|打给|号码|電話|携帯|전화|휴대폰|연락|هاتف|тел"
)
_WEAK_WORDS: Final = _any_of("<number>|<numbers>|<mine is>|numéro|nummer|<nr.>|<ph>|<ph.>|<toll free>")
_OTHER_NUMBER: Final = re.compile(
    r"(?:account|order|card|id|identity|tracking|serial|invoice|model|flight|passport|licen[cs]e|security|reference|policy|"
    r"case|ticket|routing|part|version|line|page|port|issue|batch|random|total|registration|tax|vat|member|customer) numbers?\b"
)
_STRONG_PHONE: Final = _any_of(
    "phone|<tel>|mobile|<cell>|<fax>|whatsapp|<sms>|hotline|msisdn|手机|电话|座机|热线|传真|電話|전화"
)
_PHONE_AFTER: Final = re.compile(
    r"[ ,)]{0,3}(?:is |was )?(?:my |the |his |her |our |their )?(?:\(?(?:office|fax|mobile|cell|home|desk|direct|work|phone|tel|number)(?![a-z])|ext(?![a-z])|x\d)"
)
_NOT_PHONE: Final = _any_of(
    "bytes|<size|rows|<seq|<ts>|time|nano|ns>|us>|ms>|<dur|count|total|offset|<hash|<seed|token|price|amount|order|invoice|"
    "tracking|transaction|<txn|serial|account|<acct|<card|<model>|version|build|commit|<isbn|<issn|<doi>|<sku>|<pid>|<port>|"
    "<line>|epoch|passport|license|licence|<id>|_id>|<ssn>|flight|ticket|<case>|<zip>|postal|<vat>|swift|routing|iban|<tool|"
    "发票|订单|流水|单号|编号|金额|快递|运单|面积|工号|学号|税号|统一社会|序列|验证码"
)
_COUNTED: Final = re.compile(
    r"(?:bytes|size|rows|\btid|\bpid|\bread|memory|\bof|order_?id|\bseq|\bts|time|nanos?|[_ ]ns|[_ ]us|[_ ]ms|dur\w{0,8}|count|total|offset|hash|seed|length|"
    r"tokens?|order(?: no\.?| id| number)?|invoice(?: no\.?| number)?|tracking(?: no\.?| number)?|发票号?码?|订单号?|流水号?|"
    r"单号|编号|金额|运单号?|快递单?号?|交易号?)[\"'\\]{0,3}\s{0,2}[:=：#]?\s{0,2}[\"']?$"
)
_UNIT_AFTER: Final = re.compile(r"[ ,]?(?:bytes|[kmgt]i?b\b|of \d|used|rows|ms\b|ns\b|us\b|tokens|chars|steps|times\b)")
_ROW: Final = re.compile(r"[0-9] \||\| [0-9]")  # the number is one of a row of numbers
_MACHINE: Final = re.compile(r"(?<![a-z])(?:lm|llm|tool|api|function|model|module|rpc)[ _\-]$")  # what calls no one
_GLUED_PHONE: Final = re.compile(r"(?<![a-z])(?:tel|phone|mobile|cell|fax|call|sim|wechat|ph|mob)$")


def _about_phone(run: Run, i: int, j: int, bare: bool) -> bool:
    before = run.before(i)
    end = -1
    for word in _PHONE_WORDS.finditer(before):
        if not (word.group().startswith("call") and _MACHINE.search(before, 0, word.start())):
            end = word.end()
    if end < 0 and not bare:
        for word in _WEAK_WORDS.finditer(before):
            end = word.end()
    if end < 0:
        return _PHONE_AFTER.match(run.after(j)) is not None
    if _OTHER_NUMBER.search(before, max(0, end - 24)) is not None or _NOT_PHONE.search(before, end) is not None:
        return False
    if bare and run.t[i] == "1" and j - i == 10:  # 10 digits from 1: an epoch in seconds unless a phone is named
        return _STRONG_PHONE.search(before) is not None
    return True


_CN_MOBILE: Final = re.compile(
    r"(?<!\d)(?:(?:00)?86[ .\-]{0,2})?\)?[ ]?"
    r"(1[3-9](?:\d{9}|\d[ .\-]{1,2}\d{4}[ .\-]{0,2}\d{4}|\d{5}[ .\-]{1,2}\d{4}|\d[ .\-]\d{3}[ .\-]\d{5}|"
    r"\d{2}[ .\-]\d{3}[ .\-]\d{4}))(?!\d)"
)
_SPACED_MOBILE: Final = re.compile(r"(?<!\d)1(?:[ \-.]{1,2}\d){10}(?!\d)")
_NANP: Final = re.compile(
    r"(?<!\d)(?:(?:001|1)[ .\-]?)?(?:\(\d{3}\)[ .\-]?|\d{3}(?:\)[ .\-]?|[ .\-]))\d{3}[ .\-]?\d{4}(?!\d)"
)
_TRUNK: Final = re.compile(
    r"(?<!\d)0(?:0[1-9]\d{0,2}(?:[ \-]\d{1,4}){3,6}|[1-9]\d{0,3}\)?[ \-]\d{2,8}(?:[ \-]\d{2,4}){0,3}|[1-9](?:[ .]\d{2}){4}|\d{2,3}-\d{7,8})(?!\d)"
)
_AREA: Final = re.compile(r"(?<!\d)\d{2,5}\)[ \-]?\d{3,5}[ \-]?\d{3,5}(?!\d)")
_SERVICE: Final = re.compile(
    r"(?<!\d)[48]00(?:-\d{3}-\d{4}|-\d{4}-\d{3}|\d-\d{3}-\d{3})(?!\d)|(?<!\d)1[38]00[ \-]\d{3}[ \-]\d{3}(?!\d)"
)
_DATE: Final = re.compile(r"(?:19|20)\d\d[-. ](?:0?[1-9]|1[0-2])[-. ]|\d{1,2}[-. ]\d{1,2}[-. ](?:19|20)\d\d")
_LOCAL: Final = re.compile(r"(?<!\d)\d(?:[ .\-()]{0,2}\d){5,14}(?!\d)")


def phones(run: Run) -> Iterable[Span]:
    """Telephone numbers: Chinese mobiles and landlines, ``+`` with 8 to 15 digits, punctuated North American ones.

    Other shapes count only near a word such as ``phone`` or ``电话`` and away from words such as ``order``.
    """
    text, start = run.text, run.start
    if start and text[start - 1] in "+\uff0b":
        span = _international(run)
        if span is not None:
            return [span]
    if run.plain:
        return _bare(run)
    spans: list[Span] = []
    for shape, check, least, needs in _SHAPES:
        if run.digits < least or needs not in run.t:
            continue
        for match in shape.finditer(run.t):
            i, j = match.span()
            if any(a < start + j and start + i < b for a, b in spans) or not run.free(i, j, _GLUED_PHONE):
                if shape is not _CN_MOBILE or not run.free(match.start(1), j, _GLUED_PHONE):
                    continue
                i = match.start(1)
            if check(run, i, j):
                spans.append(_widened(run, i, j))
    return spans


def _international(run: Run) -> Span | None:
    text, start = run.text, run.start
    if (
        start > 1
        and text[start - 2].isascii()
        and text[start - 2].isalnum()
        and not (start > 2 and text[start - 3] == "\\" and text[start - 2] in "nrtbf")  # an escaped line break
        and not _GLUED_PHONE.search(run.lowered[max(0, start - 12) : start - 1])
    ):
        return None
    t = run.t
    if t[0] == "0":
        return None
    limit = 11 if t[0] == "1" else 13 if t.startswith("86") else 12 if t[:2] in ("44", "33", "81", "91", "61") else 15
    digits = end = 0
    for group in _DIGITS.finditer(t):
        if group.start() - end > 3:
            break
        size = 0 if t[group.start() - 1 : group.end() + 1] == "(0)" else group.end() - group.start()
        if digits + size > limit:
            break
        digits += size
        end = group.end()
    if not 8 <= digits <= 15 or not run._free_right(end):
        return None
    return _widened(run, 0, end)


def _bare(run: Run) -> Iterable[Span]:
    t, size = run.t, run.digits
    if size > 15:
        return ()
    if not run.free(0, size, _GLUED_PHONE):
        return ()
    mobile = t[-11:]
    if size >= 11 and mobile[0] == "1" and mobile[1] in "3456789" and t[:-11] in ("", "86", "0086", "086"):
        if size == 11 and not _always(run, 0, size):
            return ()
        return (_widened(run, 0, size),) if size == 11 or _always(run, 0, size) else ()
    if size <= 12 and _about_phone(run, 0, size, bare=True):
        if not _COUNTED.search(run.before(0)) and not _UNIT_AFTER.match(run.after(size)):
            return (_widened(run, 0, size),)
    return ()


def _always(run: Run, i: int, j: int) -> bool:
    return not _COUNTED.search(run.before(i)[-32:]) and not _UNIT_AFTER.match(run.after(j))


def _nanp(run: Run, i: int, j: int) -> bool:
    piece = run.t[i:j]
    digits = "".join(filter(str.isdigit, piece))[-10:]
    if ")" in piece or "-" in piece:
        return True
    if piece.count(".") >= 2:
        return piece.count(" ") == 0
    before, after = run.text[max(0, run.start + i - 2) : run.start + i], run.text[run.start + j : run.start + j + 2]
    listed = _ROW.search(before + "|" + after) is not None
    return digits[0] in "23456789" and digits[3] in "23456789" and not listed and _always(run, i, j)


def _digits_between(low: int, high: int) -> Callable[[Run, int, int], bool]:
    def check(run: Run, i: int, j: int) -> bool:
        piece = run.t[i:j]
        return low <= sum(map(str.isdigit, piece)) <= high and not _DATE.match(piece) and _always(run, i, j)

    return check


def _area(run: Run, i: int, j: int) -> bool:
    return run.start + i > 0 and run.text[run.start + i - 1] in "(\uff08" and _digits_between(9, 12)(run, i, j)


def _spaced(run: Run, i: int, j: int) -> bool:
    return _about_phone(run, i, j, bare=False)


def _local(run: Run, i: int, j: int) -> bool:
    piece = run.t[i:j]
    groups = re.split(r"\D+", piece)
    if len(groups) > 6 or piece.count(".") == 1 or _DATE.match(piece) or len(piece) - piece.count(" ") > _LONGEST_LOCAL:
        return False
    return _about_phone(run, i, j, bare=len(groups) == 1) and _digits_between(6, 13)(run, i, j)


_SHAPES: Final[tuple[tuple[re.Pattern[str], Callable[[Run, int, int], bool], int, str], ...]] = (
    # shape, check, digits and text without which the shape cannot be there
    (_CN_MOBILE, _always, 11, "1"),
    (_NANP, _nanp, 10, ""),
    (_SERVICE, _always, 10, "00"),
    (_AREA, _area, 9, ")"),
    (_TRUNK, _digits_between(9, 15), 9, "0"),
    (_SPACED_MOBILE, _spaced, 11, "1"),
    (_LOCAL, _local, 6, ""),
)


def _widened(run: Run, i: int, j: int) -> Span:
    """Take in the ``+``, the brackets and the extension that belong to the number."""
    text = run.text
    start, end = run.start + i, run.start + j
    if start and text[start - 1] in "+\uff0b":
        start -= 1
    if start and text[start - 1] in "(\uff08" and any(c in text[start:end] + text[end : end + 1] for c in ")\uff09"):
        start -= 1
        if start and text[start - 1] in "+\uff0b":
            start -= 1
    extension = _EXTENSION.match(text, end)
    return start, extension.end() if extension else end


_CARD_GROUPED: Final = re.compile(
    r"(?<!\d)(?:\d{4}([ .\-])\d{4}\1\d{4}(?:\1\d{4}(?:\1\d{1,3})?|\1\d{1,3})?|3\d{3}([ .\-])\d{6}\2\d{4,5}|"
    r"\d{6}([ \-])\d{10,13}|\d{12,19})(?!\d)"
)
_CARD_WORDS: Final = re.compile(
    r"card|visa|master|amex|american express|discover|maestro|diners|jcb|\bpan\b|\bcc\b|credit|debit|payment|charge|bill|"
    r"\bpay|信用卡|银行卡|借记卡|储蓄卡|卡"
)
_UNIONPAY_WORD: Final = re.compile(r"卡|unionpay|银联|账[号户]|pan\b")
_GLUED_CARD: Final = re.compile(r"(?<![a-z])(?:card|pan|visa|cc|amex)$")


def cards(run: Run) -> Iterable[Span]:
    """Payment card numbers: Luhn and issuer; 12 and 13 digits only near a word such as ``card``."""
    if run.digits < 12:
        return ()
    spans: list[Span] = []
    for match in (_CARD_WHOLE if run.plain else _CARD_GROUPED).finditer(run.t):
        i = match.start()
        for j in _cuts(match.group(), i):
            if run.free(i, j, _GLUED_CARD) and _card(run, i, j):
                spans.append((run.start + i, run.start + j))
                break
    return spans


_CARD_WHOLE: Final = re.compile(r"^\d{12,19}$")


def _cuts(candidate: str, at: int) -> Iterator[int]:
    """Ends to try: the whole, then without its last group, which may be a security code."""
    yield at + len(candidate)
    cut = max(candidate.rfind(" "), candidate.rfind("-"), candidate.rfind("."))
    if cut > 12:
        yield at + cut


def _card(run: Run, i: int, j: int) -> bool:
    digits = "".join(filter(str.isdigit, run.t[i:j]))
    size = len(digits)
    if not 12 <= size <= 19 or digits.count(digits[0]) == size:
        return False
    before = run.before(i)
    if digits.startswith("62") and size >= 16 and _UNIONPAY_WORD.search(before[-12:]):
        return True
    if not (validators.card_issuer(digits) and validators.luhn(digits)):
        return False
    if size <= 13:
        return _CARD_WORDS.search(before) is not None or _CARD_WORDS.search(run.after(j)) is not None
    return not _COUNTED.search(before) or _CARD_WORDS.search(before[-16:]) is not None


_CN_ID: Final = re.compile(
    r"(?<!\d)([1-9]\d{5})[ \-]?((?:18|19|20)\d{2})[ \-]?((?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))[ \-]?(\d{3}[\dXx])(?![0-9A-Za-z])"
)
_ID_WORDS: Final = re.compile(r"身份证|证件|公民|id ?card|identity|resident|sfz")
_GLUED_ID: Final = re.compile(r"(?<![a-z])(?:id|sfz|no)$")


def cn_ids(run: Run) -> Iterable[Span]:
    """Chinese resident identity numbers: date and check digit; the old 15-digit form only near a word for it."""
    if run.digits < 15:
        return ()
    t = run.t
    if run.end < len(run.text) and run.text[run.end] in "Xx\uff38\uff58":
        t += "X"
    spans: list[Span] = []
    for match in _CN_ID.finditer(t):
        i, j = match.span()
        if validators.cn_resident_id("".join(match.groups()).upper()) and run.free(i, j, _GLUED_ID):
            spans.append((run.start + i, run.start + j))
    if run.plain and run.digits == 15 and validators.cn_resident_id_15(t[:15]) and run.free(0, 15):
        if _ID_WORDS.search(run.before(0)[-16:]):
            spans.append((run.start, run.start + 15))
    return spans


_SSN: Final = re.compile(r"(?<!\d)(\d{3})([ .\-])(\d{2})\2(\d{4})(?!\d)")
_SSN_WORDS: Final = re.compile(r"\bssn|social[ _-]?sec|\bss ?#|taxpayer|\bss number")


def ssns(run: Run) -> Iterable[Span]:
    """US social security numbers: dashed by the rules for areas; any other form only near ``SSN``."""
    if run.digits < 9:
        return ()
    if run.plain:
        if run.digits == 9 and validators.us_ssn(run.t) and run.free(0, 9, _GLUED_SSN):
            if _SSN_WORDS.search(run.before(0)):
                return ((run.start, run.end),)
        return ()
    spans: list[Span] = []
    for match in _SSN.finditer(run.t):
        i, j = match.span()
        if validators.us_ssn(match[1] + match[3] + match[4]) and run.free(i, j, _GLUED_SSN):
            if match[2] == "-" or _SSN_WORDS.search(run.before(i)):
                spans.append((run.start + i, run.start + j))
    return spans


_GLUED_SSN: Final = re.compile(r"(?<![a-z])ssn$")
