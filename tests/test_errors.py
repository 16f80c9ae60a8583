"""The closest known names are offered."""

import pytest

from turborec.errors import closest


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("lrr", " (did you mean 'lr'?)"),
        ("epoch", " (did you mean 'epochs'?)"),
        ("batch", " (did you mean 'batch_b' or 'batch_a'?)"),
        ("zzz", " (known: batch_a, batch_b, epochs, lr)"),
    ],
)
def test_the_nearest_names_are_offered_or_else_all(name: str, told: str) -> None:
    assert closest(name, ["lr", "epochs", "batch_a", "batch_b"]) == told


def test_nothing_is_offered_where_nothing_is_known() -> None:
    assert closest("lr", []) == ""
