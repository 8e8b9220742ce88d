"""What can be put right in a row: personal data taken out, neighbouring turns of one role made one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Literal, TypeAlias, cast

from recipe_kit.formatters import Example, Message

Kind: TypeAlias = Literal["email", "phone", "card"]
KINDS: tuple[Kind, ...] = ("email", "card", "phone")  # where two meet, the first one wins
Finding: TypeAlias = tuple[int, int, Kind]

# Digits and separators of other scripts and of typography, one character for one, so that places stay the same.
_PLAIN = {zero + digit: ord("0") + digit for zero in (0x660, 0x6F0, 0x966, 0xFF10) for digit in range(10)}
_PLAIN |= {ord(dash): ord("-") for dash in "\u2010\u2011\u2012\u2013\u2212"} | {ord("＋"): ord("+")}
_PLAIN |= {ord(space): ord(" ") for space in "\u00a0\u2007\u2009\u202f"}

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9_%+@-])[A-Za-z0-9_%+-][A-Za-z0-9._%+-]{0,63}@"
    r"(?:[A-Za-z0-9-]{1,63}\.){1,8}(?P<end>[A-Za-z]{2,24})(?![A-Za-z0-9@])"
)
_FILE_ENDINGS = frozenset({"png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "css", "js", "json"})  # icon@2x.png
_LOGIN = re.compile(r"://[^\s/]*\Z")  # https://ann:secret@example.com
_ANY_DIGIT = re.compile(r"\d")
_DIGIT_RUN = re.compile(r"[0-9][0-9 ().\-/]{6}")

_CARD = re.compile(
    r"(?<![\w+.-])(?:[0-9]{14,19}|[0-9]{4}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}|[0-9]{4}([ -])[0-9]{6}\2[0-9]{4,5})"
    r"(?![\w]|[.-][0-9])",
    re.ASCII,
)
# Prefix and length by network: Visa, Mastercard, Amex, Diners, JCB, UnionPay, Discover, RuPay.
_ISSUER = re.compile(
    r"4\d{15}|5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}|35(?:2[89]|[3-8]\d)\d{12}|62\d{14,17}|6\d{15}|(?:8[12]\d\d|508\d)\d{12}"
)

# Written in a way that says what it is. Quantifiers are possessive (`++`), so that no row makes them slow.
_CLEAR_PHONE = re.compile(
    r"""(?<![\w+#$€£₹-])(?<![0-9][.,/])(?:
      (?P<plus>
        (?:\(\+1\)|\+1)[ .-]?(?:\([0-9]{3}\)|[0-9]{3})[ .-]?[0-9]{3}[ .-]?[0-9]{4}    # +1 (415) 555-0132
      | (?:\(\+91\)|\+91)[ -]?0?(?:[ -]?[0-9]){10}                                    # +91 98xxx xxxxx
      | (?:\(\+[1-9][0-9]{0,2}\)|\+\([1-9][0-9]{0,2}\)|\+[1-9][0-9]*+)
        (?:[ ./-]?+(?:\([0-9]++\)|[0-9]++))*+                                         # +49 (0)30 1234-56
      )
    | (?:1[ .-])?(?:\([1-9][0-9]{2}\)[ -]?[0-9]{3}[ .-]|[1-9][0-9]{2}-[0-9]{3}-)[0-9]{4}    # (415) 555-0132
    | (?:1\.)?[1-9][0-9]{2}\.[0-9]{3}\.[0-9]{4}                                       # 415.555.0132
    | 18[06]0-[0-9]{3}-[0-9]{3,4}                                                     # Indian toll-free
    | (?:\(01[567][0-9]{1,2}\)|01[567][0-9]{1,2})[ /-]{1,3}[0-9]{3,8}(?:[ -][0-9]{2,5}){0,2}    # German mobile
    )(?![\w]|[.,:-][0-9])""",
    re.VERBOSE | re.ASCII,
)
# Written as other numbers are, too: a phone number only where the words around it say so.
_UNCLEAR_PHONE = re.compile(
    r"""(?<![\w+#$€£₹-])(?<![0-9][.,/])(?:
      (?P<mobile>(?:91[ -]?|0)?[6-9][0-9]{4}[ -]?[0-9]{5})                            # Indian mobile: 98xxx xxxxx
    | (?:1[ .-]?)?(?:\([2-9][0-9]{2}\)|[2-9][0-9]{2})[ .-]?[0-9]{3}[ .-]?[0-9]{4}     # 4155550132, 415 555 0132
    | [2-9][0-9]{2}[.-][0-9]{4}                                                       # 555-0132
    | (?![0-9]{5}-[0-9]{4}\b)                                                         # an American postcode
      (?:\(0[1-9][0-9]{0,4}\)|0[1-9][0-9]{0,4})(?:[ ./-]{1,3}[0-9]{2,9}){1,5}         # 030 1234567, 06 12 34 56 78
    | 0[1-9][0-9]{7,10}                                                               # 01511234567
    )(?![\w]|[.,:-][0-9])""",
    re.VERBOSE | re.ASCII,
)
_PHONE_WORD = re.compile(
    r"phone|\bmob(?:ile)?\b|\bcell\b|\btel\b|telef|whats ?app|\bcall\b|\bdial|\bfax\b|\bsms\b|hotline|helpline"
    r"|toll[- ]free|\breach\b|\bcontact\b|\bhandy\b|\brufen?\b|\banruf|\bnummer ist|\bnumber (?:is|hai)"
    r"|\b(?:my|your|his|her|their|our|mera|apna|aapka|unka|uska|meine|ihre) (?:number|no|nummer)\b"
    r"|[फ\u095e]\u093c?ोन|मोबाइल|नंबर|कॉल"
)
# What a number is when one of these stands right before it.
_OTHER_NUMBER = re.compile(
    r"\b(?:(?:order|purchase|bill|invoice|ticket|track(?:ing)?|shipment|parcel|awb|ref(?:erence)?|booking|pnr|policy"
    r"|is[bs]n|serial|sku|version|build|bestellung|rechnung|auftrag)(?:[ -]?(?:numbers?|num|no|nr|id|code))?"
    r"|(?:account|acct|a/c|customer|case|item|product|model|transaction|txn|part|member)[ -]?"
    r"(?:numbers?|num|no|nr|id|code)"
    r"|(?:bestell|rechnungs|auftrags|sendungs|artikel|kunden|konto)-?(?:nummer|nr)|iban|id|rs|inr|usd|eur)\b"
    r"(?: (?:is|was|ist|hai|ka|of))?[\s.:#=*\"'(-]*$"
)
_IN_URL = re.compile(r"(?:https?://|www\.)\S*\Z")


def find_personal(text: str) -> list[Finding]:
    """E-mail addresses, phone and payment card numbers of a text, in order: (start, end, kind), in characters.

    The form is judged, not whether anybody answers: `ann@example.com` and 555 numbers count. A phone number counts
    when it is written as one (+49 ..., (415) 555-0132) or when a word near it says so; numbers that are named as
    something else (order, invoice, ISBN, version) and those inside a web address do not. A card number has the prefix
    and length of a card network and passes the Luhn check.
    """
    candidates = sorted(_candidates(text), key=lambda finding: KINDS.index(finding[2]))
    taken = bytearray(len(text) if candidates else 0)
    found: list[Finding] = []
    for start, end, kind in candidates:
        if not any(taken[start:end]):
            taken[start:end] = b"\1" * (end - start)
            found.append((start, end, kind))
    return sorted(found)


def redact(example: Example, kinds: Collection[Kind] = KINDS) -> tuple[Example, Counter[str]]:
    """A copy of the example with each finding of these kinds replaced by `[email]`, `[phone]` or `[card]`.

    All turns are read, system turns too. The counter says how many of each kind were replaced. Everything else, and
    the example passed in, stays as it is.
    """
    counts: Counter[str] = Counter()
    copy: dict[str, Any] = {}
    for part, value in example.items():
        if isinstance(value, str):
            copy[part] = _redact_text(value, kinds, counts)
        else:
            turns = cast(Sequence[Message], value)
            copy[part] = [{**turn, "content": _redact_text(turn["content"], kinds, counts)} for turn in turns]
    return cast(Example, copy), counts


def merge_roles(example: Example) -> tuple[Example, int]:
    """A copy in which neighbouring turns of one role are one turn, and how many turns that took away.

    Contents are joined with a blank line; blank contents add nothing. `prompt` and `completion` are each looked at
    alone. `train: False` stays where all merged turns have it; assistant turns of which only some are trained are not
    merged, nor are tool turns, which answer one call each.
    """
    merged: dict[str, Any] = {}
    taken = 0
    for part, value in example.items():
        if isinstance(value, str):
            merged[part] = value
            continue
        turns: list[Message] = []
        for turn in cast(Sequence[Message], value):
            if turns and _can_merge(turns[-1], turn):
                turns[-1] = _merged(turns[-1], turn)
                taken += 1
            else:
                turns.append(cast(Message, dict(turn)))
        merged[part] = turns
    return cast(Example, merged), taken


def _can_merge(first: Message, second: Message) -> bool:
    role = first["role"]
    if role != second["role"] or role == "tool":
        return False
    return role != "assistant" or first.get("train", True) == second.get("train", True)


def _merged(first: Message, second: Message) -> Message:
    contents = [turn["content"] for turn in (first, second) if turn["content"].strip()] or [first["content"]]
    message: Message = {"role": first["role"], "content": "\n\n".join(contents)}
    if not first.get("train", True) and not second.get("train", True):
        message["train"] = False
    return message


def _redact_text(text: str, kinds: Collection[Kind], counts: Counter[str]) -> str:
    pieces, place = [], 0
    for start, end, kind in find_personal(text):
        if kind in kinds:
            pieces += [text[place:start], f"[{kind}]"]
            place = end
            counts[kind] += 1
    return "".join([*pieces, text[place:]])


def _candidates(text: str) -> Iterator[Finding]:
    """Findings of every kind, which may meet. The checks before each pattern keep most rows cheap."""
    if "@" in text:
        yield from ((*match.span(), "email") for match in _EMAIL.finditer(text) if _is_email(match, text))
    if not _ANY_DIGIT.search(text):
        return
    plain = text if text.isascii() else text.translate(_PLAIN)
    if _DIGIT_RUN.search(plain):
        yield from ((*match.span(), "card") for match in _CARD.finditer(plain) if _is_card(match, plain))
        yield from ((*match.span(), "phone") for match in _CLEAR_PHONE.finditer(plain) if _is_clear(match, plain))
        yield from ((*match.span(), "phone") for match in _UNCLEAR_PHONE.finditer(plain) if _is_unclear(match, plain))


def _is_email(match: re.Match[str], text: str) -> bool:
    if match["end"].lower() in _FILE_ENDINGS:
        return False
    repository = match[0].startswith("git@") and text[match.end() : match.end() + 1] in (":", "/")
    return not repository and not _LOGIN.search(text[max(0, match.start() - 40) : match.start()])


def _is_card(match: re.Match[str], text: str) -> bool:
    digits = re.sub(r"\D", "", match[0])
    return bool(_ISSUER.fullmatch(digits)) and _luhn(digits) and not _named_otherwise(text, match.start())


def _luhn(digits: str) -> bool:
    doubled = [int(digit) * 2 for digit in digits[-2::-2]]
    return (sum(map(int, digits[-1::-2])) + sum(number - 9 * (number > 9) for number in doubled)) % 10 == 0


def _is_clear(match: re.Match[str], text: str) -> bool:
    digits = re.sub(r"\D", "", match[0])
    if match["plus"]:  # not +12.3456789, +5 000 000 or a product of digits longer than any number
        number = re.search(r"^\+\d+\.\d+$|[ .]000$", match[0]) or text.startswith("%", match.end())
        return 8 <= len(digits) <= 15 and not number and not _in_url(text, match.start())
    return 10 <= len(digits) <= 13 and not _named_otherwise(text, match.start())


def _is_unclear(match: re.Match[str], text: str) -> bool:
    if len(re.sub(r"\D", "", match[0])) > 13 or _named_otherwise(text, match.start()):
        return False
    if match["mobile"] and len(text) <= 40:  # the answer to "your number, please?"
        return True
    near = text[max(0, match.start() - 40) : match.start()] + "\n" + text[match.end() : match.end() + 25]
    return bool(_PHONE_WORD.search(near.lower()))


def _named_otherwise(text: str, start: int) -> bool:
    before = text[max(0, start - 40) : start].lower()
    return bool(_OTHER_NUMBER.search(before)) or _in_url(text, start)


def _in_url(text: str, start: int) -> bool:
    return bool(_IN_URL.search(text[max(0, start - 200) : start]))
