"""The one error that a user is meant to read."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user handed in cannot be used.

    The message is one sentence or a few that say what came, what was expected and what to do; for data it names file
    and line or annotation id. The command line prints the message without a traceback and exits with code 2. It is a
    ValueError, so that callers of the Python API need not know this class.
    """


def nearest(name: str, known: list[str] | tuple[str, ...]) -> str:
    """Return ``"; did you mean 'x' or 'y'?"``, or an empty text where nothing known is near.

    Args:
        name: what came.
        known: what would have been right.
    """
    import difflib

    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(repr(match) for match in near)}?" if near else ""
