"""The exception tree, and the exit code each branch maps to.

::

    VitsenseError                 4  internal: something we did not foresee
    ├── GateFailedError           1  a limit the user set was exceeded
    ├── UserInputError            2  an argument, a file's content or a combination is wrong
    │   ├── TooLittleTimeError    2  a time budget ended before a plan could be made
    │   ├── SchemaVersionError    2  a file written by a newer version
    │   ├── SiteMismatchError     2  a plan or result that belongs to another model
    │   ├── StaleResultError      2  a run folder made with other settings, weights or data
    │   ├── InUseError            2  another process writes into the same folder
    │   └── SeveralWrongError     2  several arguments are wrong; all of them are said
    ├── InputMissingError         3  weights, data, a run or a plan cannot be found or reached
    ├── MeasurementError          4  a model could not be measured (not finite, not deterministic)
    └── ProcessLostError        130  another process of the run died; the same command continues
        └── AlreadySaidError    130  another process ended, and has said why

Every message says what was wrong, the value seen, what is allowed, and what to do next.
Exit code 0 is success, 130 an interruption (Ctrl-C or SIGTERM).
"""

from __future__ import annotations

from collections.abc import Sequence


class VitsenseError(Exception):
    """Anything vitsense raises on purpose."""

    exit_code = 4


class GateFailedError(VitsenseError):
    """A limit set by the user (for example ``--fail-if-drop``) was exceeded."""

    exit_code = 1


class UserInputError(VitsenseError, ValueError):
    """An argument, a file's content or a combination of options is wrong."""

    exit_code = 2


class SchemaVersionError(UserInputError):
    """A file carries a schema that this version does not read."""


class SiteMismatchError(UserInputError):
    """A plan or result names other modules, or another model, than the one at hand."""


class StaleResultError(UserInputError):
    """A run folder holds results of other settings, weights or data."""


class InUseError(UserInputError):
    """Another process writes into the folder or file at the moment."""


class TooLittleTimeError(UserInputError):
    """A time budget ended before every module had been looked at, too early for a plan."""


class InputMissingError(VitsenseError):
    """Weights, data, a run or a plan cannot be found or reached."""

    exit_code = 3


class MeasurementError(VitsenseError):
    """The model could not be measured: not finite, not deterministic, no logits."""

    exit_code = 4


class ProcessLostError(VitsenseError):
    """Another of the processes that measure a run together died or cannot be reached."""

    exit_code = 130


class AlreadySaidError(ProcessLostError):
    """Another of the processes ended and has told the person why; this one ends in silence."""


class SeveralWrongError(UserInputError):
    """Several things are wrong at once."""

    def __init__(self, message: str, sentences: Sequence[str]) -> None:
        super().__init__(message)
        self.sentences = tuple(sentences)
        """One about each."""


def refuse_all(wrong: Sequence[str]) -> None:
    """Refuse everything that is wrong at once, so that nobody mends one thing after the other.

    Args:
        wrong: A sentence about each; none: nothing is refused.

    Raises:
        UserInputError: there is one at least.
    """
    if len(wrong) == 1:
        raise UserInputError(wrong[0])
    if wrong:
        lines = "".join(f"\n  {sentence}" for sentence in wrong)
        raise SeveralWrongError(f"{len(wrong)} things are wrong:{lines}", wrong)
