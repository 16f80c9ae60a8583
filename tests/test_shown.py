from turborec.shown import visible


def test_what_moves_a_cursor_is_written_as_its_code():
    assert visible("red \x1b[31m\x9b2J text\r") == "red \\u001b[31m\\u009b2J text\\u000d"


def test_what_turns_the_text_around_is_written_as_its_code():
    assert visible("a\u202eb\u2066c") == "a\\u202eb\\u2066c"


def test_ordinary_text_stays_as_it_is():
    assert visible("żółw\tи 漢字\n🙂 [brackets]") == "żółw\tи 漢字\n🙂 [brackets]"
