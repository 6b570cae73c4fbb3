"""What the collection server does not do as asked, each with the HTTP status that says so."""

from rlhf.errors import UserError


class Refusal(UserError):
    """A request that is understood and cannot be carried out. fields: name of an input -> what is wrong with it."""

    status = 422
    keeps_writes = False  # true: what was written before it was raised is committed; Database.write() sees to it

    def __init__(self, message: str, fields: dict[str, str] | None = None):
        super().__init__(message)
        self.fields = fields or {}


class NotSignedIn(Refusal):
    status = 401


class Forbidden(Refusal):
    status = 403


class NotFound(Refusal):
    status = 404


class Conflict(Refusal):
    """Somebody, or the same person in another tab, was there first. current: what stands in the database now."""

    status = 409

    def __init__(self, message: str, current: dict | None = None):
        super().__init__(message)
        self.current = current


class TooMany(Refusal):
    """retry_after: seconds."""

    status = 429

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after


class Unavailable(Refusal):
    """The database cannot be reached or written. What the person entered is still in the page."""

    status = 503


class Damaged(Unavailable):
    """The database's file is broken, or none. Trying again does not help, a backup does."""
