import time

import pytest

from turborec.features.plain import joined, plain


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("<p>Hello&nbsp;<b>world</b></p>", "Hello world"),
        ("one<br/>two\r\n\tthree", "one two three"),
        ("I <3 this & that, a < b and c > d", "I <3 this & that, a < b and c > d"),
        ("&lt;b&gt; is bold &amp; old", "<b> is bold & old"),
        ("<script>if (a<b) x('</p>')</script>after<STYLE>p {}</STYLE>", "after"),
        ("<!-- hidden --> seen <!-- never closed", "seen never closed"),
        ("<br> \x00\x07 &nbsp;", ""),
        ("", ""),
        ("Привет 東京 مرحبا 👩‍👩‍👧 naïve", "Привет 東京 مرحبا 👩‍👩‍👧 naïve"),
        ("half \ud800 whole \ud83d\ude00", "half \ufffd whole \U0001f600"),
        ("&#xD800;&#55296;", "\ufffd\ufffd"),
    ],
)
def test_a_text_is_as_it_would_be_seen(text, seen):
    assert plain(text) == seen
    plain(text).encode()


@pytest.mark.parametrize("piece", ["<!--", "<script>", "<", "<a ", "<a>", "&", "&amp;", "</script", "<!-- -->", "<!doctype"])
def test_time_is_in_proportion_to_length(piece):
    begun = time.process_time()
    plain(piece * (100_000 // len(piece)))
    assert time.process_time() - begun < 1


def test_the_texts_of_an_item_are_joined_without_those_that_say_nothing():
    assert joined(["Heat (1995)", None, "<br>", "Action|Crime"]) == "Heat (1995)\nAction, Crime"
    assert joined([None, " ", ""]) == ""
