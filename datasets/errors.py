"""The one error that a person causes and can mend: it ends the command with a clear line and exit code 2."""

import difflib
from collections.abc import Iterable, Sequence


class InputError(ValueError):
    """Something from outside (a file, a key, an argument) breaks a rule.

    The message says what was wrong, where, and the rule; the command line prints it without a traceback.
    """


MOST_LISTED = 20  # names; of a longer list the first of them stand for the rest


def unknown(kind: str, name: str, available: Iterable[str], more: Iterable[str] = ()) -> InputError:
    """The error for a name that is not in a closed list, with the nearest of it and of ``more`` (not listed)."""
    names = sorted(available)
    if not names:
        return InputError(f"Unknown {kind} '{name}': there are none")
    return InputError(f"Unknown {kind} '{name}'.{nearest(name, names, more)}")


def nearest(name: str, names: Sequence[str], more: Iterable[str] = ()) -> str:
    """The end of a message: which names may be meant, and which there are."""
    near = difflib.get_close_matches(name, sorted({*names, *more}), n=3, cutoff=0.5)
    comma = "; " if any("," in one for one in (*names, *near)) else ", "
    hint = f" Did you mean: {comma.join(near)}?" if near else ""
    rest = f"{comma}... ({len(names):,} in all)" if len(names) > MOST_LISTED else ""
    return f"{hint} Available: {comma.join(names[:MOST_LISTED])}{rest}"
