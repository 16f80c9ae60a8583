"""The one exception meant for a user's eyes, and kinds of it that somebody else looks for."""


class UserError(Exception):
    """Something the user can mend: says what was expected, what was got and what to do.

    The command line prints it as one paragraph and exits with 2. Anything else that escapes is a defect of turborec.
    """


class InterruptedRunError(UserError):
    """The run was asked to stop; its state is saved. The command line exits with `code`."""

    def __init__(self, message: str, code: int = 130) -> None:
        """`code`: 130 where somebody pressed Ctrl-C, 75 (try again later) where the system wanted the machine back."""
        super().__init__(message)
        self.code = code


class DivergedError(UserError):
    """The training has come to numbers that are none, in a loss, a gradient or a score; what was saved before is intact."""


def near(name: str, known: list[str] | tuple[str, ...]) -> str:
    """` (did you mean 'x'?)` for the nearest known names; '' where none is near."""
    from difflib import get_close_matches

    found = get_close_matches(name, known, n=3, cutoff=0.6)
    return f" (did you mean {' or '.join(repr(n) for n in found)}?)" if found else ""


def closest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """` (did you mean 'x'?)` for the nearest known names, else the whole list; '' when none is known."""
    return near(name, known) or (f" (known: {', '.join(sorted(set(known)))})" if known else "")
