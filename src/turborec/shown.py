"""Text from data, made fit to be seen: nothing in it moves a cursor or turns the text around it."""

import re

_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Control characters but tab and line feed, and the marks that change the direction of the text around them."""


def visible(text: str) -> str:
    """The text with its unseen characters written as their codes."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found.group()):04x}", text)
