"""For whoever watches over the server: does the process answer, and can it store anything?"""

import threading
import time
from collections.abc import Callable

from fastapi import APIRouter
from starlette.requests import Request

from reward.collect.home import fingerprint
from reward.collect.refusals import Unavailable
from reward.collect.store.database import Database
from rlhf.errors import UserError

PROBE_EVERY = 1.0  # seconds: strangers may ask as often as they like
router = APIRouter()


@router.api_route("/healthz", methods=["GET", "HEAD"])
async def healthz() -> dict:  # needs no thread, of which all may be busy
    return {"status": "ok"}


@router.api_route("/readyz", methods=["GET", "HEAD"])
def readyz(request: Request) -> dict:
    """The disk takes new bytes, a write is committed, and the schema is this release's; else 503.

    Says which collection it is to who knows it.
    """
    return {"status": "ok", "collection": request.app.state.readiness.collection()}


class Readiness:
    """Whether anything can be stored, looked at no more often than PROBE_EVERY, by one request at a time."""

    def __init__(self, database: Database, monotonic: Callable[[], float] = time.monotonic):
        self._database, self._monotonic, self._looking = database, monotonic, threading.Lock()
        self._looked_at, self._found = float("-inf"), Unavailable("the first look at the database is under way")

    def collection(self) -> str:
        """The fingerprint of the collection. Raises Unavailable for what was found."""
        if self._looking.acquire(blocking=False):  # who comes meanwhile gets what was found last, and takes no thread
            try:
                self._look()
            finally:
                self._looking.release()
        if isinstance(self._found, Unavailable):
            raise Unavailable(str(self._found))
        return self._found

    def _look(self) -> None:
        if self._monotonic() - self._looked_at < PROBE_EVERY:
            return
        try:
            self._database.probe()
            with self._database.read() as session:
                self._found = fingerprint(session)
        except UserError as error:
            self._found = Unavailable(str(error))
        self._looked_at = self._monotonic()
