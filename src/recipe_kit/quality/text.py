"""Counting words and scripts, the same way for every language."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

Script: TypeAlias = Literal["devanagari", "latin", "other"]

# Thai, Lao, Burmese, Khmer, Japanese and Chinese are written without spaces.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
)
# Marks that belong to the letter before them, which Python's \w leaves out: without them नमस्ते is three words.
_MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u065f\u0900-\u0963\u0966-\u0dff\u200c\u200d"
_WORD = re.compile(rf"(?=[^\W_])[{_UNSPACED}]|[^\W_][^\s{_UNSPACED}]*")
_WORD_WITH_LETTER = re.compile(rf"(?=[^\W\d_])[{_UNSPACED}]|[^\W\d_][^\s{_UNSPACED}]*")
_TOKEN = re.compile(rf"(?=[^\W_])[{_UNSPACED}]|(?:(?![{_UNSPACED}])[^\W_])(?:(?![{_UNSPACED}])[\w{_MARKS}])*")
_ASCII_WORD = re.compile(r"[A-Za-z0-9]\S*")
_ASCII_WORD_WITH_LETTER = re.compile(r"[A-Za-z]\S*")
_ASCII_TOKEN = re.compile(r"[a-z0-9]\w*", re.ASCII)
_LATIN_RUN = re.compile(r"[a-z]+")

# Frequent function words of romanised Hindi (and Urdu, which cannot be told apart here) that are not English words.
# Left out although frequent: the, to, me, main, par, is, us, hum, ho, jab, tab, se, ye, wo, mere, koi.
_HINDI = """
kya hai hain nahi nahin mein aur kaise kyun kyon kab kahan kaun kaunsa kaunse kitna kitne kitni kaisa kaisi mujhe mera
meri aap aapka aapki aapke aapko apna apni apne tum tumhara tumhe humein hamara hamare yeh woh iska iski iske uska
uski uske isme unka unki unke kuch sabhi bhi bahut bohot accha acha achha theek thik sirf lekin kyunki phir abhi yahan
wahan liye saath karna karne karo karta karti karte kiya karke raha rahi rahe hua hota hoti hote hoga hogi gaya gayi
chahiye chahta sakta sakte sakti dijiye kijiye haan jaise pehle matlab
"""
ROMANISED_HINDI = frozenset(_HINDI.split())


def word_count(text: str) -> int:
    """Words of a text: what stands between spaces and holds a letter or a digit.

    In scripts written without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) each letter counts as a word.
    """
    return len((_ASCII_WORD if text.isascii() else _WORD).findall(text))


def script_counts(text: str) -> dict[Script, int]:
    """Words that hold a letter, by the script of their first letter."""
    if text.isascii():
        return {"devanagari": 0, "latin": len(_ASCII_WORD_WITH_LETTER.findall(text)), "other": 0}
    counts: dict[Script, int] = {"devanagari": 0, "latin": 0, "other": 0}
    for word in _WORD_WITH_LETTER.findall(text):
        counts[_script(word[0])] += 1
    return counts


def romanised_words(text: str) -> list[str]:
    """The words of a text that are on the list of romanised Hindi function words."""
    return [word for word in _LATIN_RUN.findall(text.lower()) if word in ROMANISED_HINDI]


def tokens(text: str) -> list[str]:
    """Words without case and punctuation, to compare texts by; a letter each in scripts written without spaces."""
    folded = text.casefold()
    return (_ASCII_TOKEN if folded.isascii() else _TOKEN).findall(folded)


def _script(letter: str) -> Script:
    if "\u0900" <= letter <= "\u097f":
        return "devanagari"
    if letter < "\u0250" or "\u1e00" <= letter <= "\u1eff" or "\uff21" <= letter <= "\uff5a":
        return "latin"
    return "other"
