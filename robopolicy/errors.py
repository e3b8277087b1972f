"""Errors that a person reads: one line naming the file, key or flag, what was expected and what was found."""

import difflib
from collections.abc import Iterable


class RobopolicyError(Exception):
    """A mistake in the input. The command line prints its one line and exits with status 2."""


class DataError(RobopolicyError):
    """A dataset that is missing, damaged or inconsistent."""


class FeatureMismatch(RobopolicyError):
    """Dataset, checkpoint and task (or robot) do not describe the same inputs and outputs."""


class CheckpointError(RobopolicyError):
    """A checkpoint that is unreadable, altered, or of another format version."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'x'?"` for the nearest known name, otherwise the list of all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if close:
        return f" Did you mean {close[0]!r}?"
    return f" Known: {', '.join(names)}." if names else ""


def unknown(what: str, name: str, known: Iterable[str]) -> RobopolicyError:
    """The error for an unknown recipe, task, sampler, key, ...; raise what it returns."""
    return RobopolicyError(f"unknown {what} {name!r}.{did_you_mean(name, known)}")


def one_line(error: BaseException) -> str:
    """What another library said, without line breaks and not longer than a few lines of a terminal."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:297]}..."
