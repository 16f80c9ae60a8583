"""Texts as an encoder is given them: without markup, control characters, halves of characters and runs of white space."""

import html
import re
from collections.abc import Iterable

_TAG = re.compile(r"<!--|<!doctype[^<>]*>|</?([a-z][a-z0-9:-]*)(?:[\s/][^<>]*)?>", re.IGNORECASE)
_UNREAD = {"script", "style"}
"""Elements whose content is for machines."""

_CONTROL = re.compile("[\x00-\x08\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufeff]")


def joined(texts: Iterable[str | None]) -> str:
    """The texts of an item as one, a line each, those left out that say nothing; '' where none says anything.

    `|`, which stands between the entries of lists, becomes a comma.
    """
    cleaned = (plain(text.replace("|", ", ")) for text in texts if text)
    return "\n".join(text for text in cleaned if text)


def plain(text: str) -> str:
    """A text as it would be seen on a page, in one line. Takes time in proportion to its length, whatever is in it."""
    if not text.isascii():  # halves of characters that belong together are joined, others cannot be written
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if "<" in text:
        text = _untagged(text)
    if "&" in text:
        text = html.unescape(text)
    return " ".join(_CONTROL.sub("", text).split())


def _untagged(text: str) -> str:
    """Without tags, comments, and what is between the tags of `_UNREAD`; an end that is missing ends nothing."""
    lowered = text.lower() if len(text.lower()) == len(text) else text
    pieces: list[str] = []
    ends: dict[str, int] = {}  # where each end was last looked for and found, -1: there is none any more
    at = 0
    while found := _TAG.search(text, at):
        name = (found[1] or "").lower()
        pieces += (text[at : found.start()], " ")
        at = found.end()
        comment = found[0] == "<!--"
        if comment or (name in _UNREAD and not found[0].startswith("</")):
            end = "-->" if comment else f"</{name}"
            if ends.get(end, 0) >= 0 and ends.get(end, 0) < at:
                ends[end] = lowered.find(end, at)
            if ends[end] >= 0:
                at = ends[end] + (len(end) if comment else 0)
    return "".join([*pieces, text[at:]])
