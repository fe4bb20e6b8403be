"""The one error that a person causes and can mend: it ends the command with a clear line and exit code 2."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something from outside (a file, a key, an argument) breaks a rule.

    The message says what was wrong, where, and the rule; the command line prints it without a traceback.
    """


MOST_LISTED = 20  # names; of a longer list the first of them stand for the rest


def unknown(kind: str, name: str, available: Iterable[str]) -> InputError:
    """The error for a name that is not in a closed list, with the nearest valid names."""
    names = sorted(available)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f" Did you mean: {', '.join(near)}?" if near else ""
    rest = f", ... ({len(names):,} in all)" if len(names) > MOST_LISTED else ""
    return InputError(f"Unknown {kind} '{name}'.{hint} Available: {', '.join(names[:MOST_LISTED])}{rest}")
