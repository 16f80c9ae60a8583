"""The Dockerfile, read: what it copies is there and let through, what it runs as, and what it must not hold."""

import re
import shlex
from fnmatch import fnmatch
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def instructions():
    """Word and rest of every instruction, continued lines joined and comments left out."""
    lines = (CHECKOUT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def test_the_base_is_pinned_to_a_release(instructions):
    bases = [rest.split()[0] for word, rest in instructions if word == "FROM"]
    assert bases and all(re.fullmatch(r"python:3\.1[123]\.\d+-slim-\w+", base) for base in bases)
    assert len(set(bases)) == 1  # a virtual environment works with the Python that made it


def test_it_does_not_run_as_root(instructions):
    named = dict(rest.split("=", 1) for word, rest in instructions if word == "ARG")
    user = [rest for word, rest in instructions if word == "USER"][-1]
    assert named.get(user.removeprefix("$"), user) == "turborec"
    runs = " ".join(rest for word, rest in instructions if word == "RUN")
    assert "useradd --create-home turborec" in runs
    last = max(number for number, (word, _) in enumerate(instructions) if word == "RUN")
    assert last < max(number for number, (word, _) in enumerate(instructions) if word == "USER")


def test_what_it_copies_is_there_and_is_let_through(instructions):
    allowed = [line[1:] for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        source for word, rest in instructions if word == "COPY" and "--from" not in rest for source in shlex.split(rest)[:-1]
    ]
    assert copied and all((CHECKOUT / source).exists() for source in copied)
    assert sorted(copied) == sorted(allowed)


def test_nothing_else_of_the_checkout_is_looked_at():
    lines = [line for line in (CHECKOUT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert lines[0] == "*"
    assert not any(fnmatch(name, line[1:]) for name in (".git", ".env", "runs") for line in lines if line.startswith("!"))


def test_it_holds_no_secret_and_fetches_nothing_by_hand(instructions):
    text = (CHECKOUT / "Dockerfile").read_text()
    assert not re.search(r"(?i)token|password|secret|api_?key|curl|wget|\bADD\b", text)
    assert all(
        "--constraint constraints.txt" in part for _, rest in instructions for part in rest.split("&&") if "pip install" in part
    )


def test_the_command_is_turborec(instructions):
    assert dict(instructions)["ENTRYPOINT"] == '["turborec"]'
