"""Errors a user can mend. Each has an exit code and one message: key or file, value, rule, remedy."""


class RlhfError(Exception):
    """Anything that stops a run by design, as opposed to a bug of ours."""

    exit_code = 1
    is_on_all_ranks = False  # then rank 0 tells it, and the others need not


class UserError(RlhfError):
    """Config, data or environment that cannot work as given."""

    exit_code = 2


class EncodingError(UserError):
    """A text that a tokenizer and its chat template do not take. `rule` is the message less what differs by record."""

    def __init__(self, message: str, rule: str | None = None):
        super().__init__(message)
        self.rule = rule or message


class ArtifactError(RlhfError):
    """An artifact or checkpoint that is absent, incomplete, altered or does not fit."""

    exit_code = 3


class NumericsError(RlhfError):
    """A number that training cannot go on from: NaN, infinity, a broken invariant."""

    exit_code = 4


def first_line(error: Exception) -> str:
    """What another library's error says first, in 200 characters at most."""
    return (str(error).strip().splitlines() or [""])[0][:200]


class Stopped(RlhfError):
    """The run was asked to stop and has saved where it is."""

    exit_code = 75
