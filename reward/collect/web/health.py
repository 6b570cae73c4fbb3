"""For whoever watches over the server: does the process answer, and can it store anything?"""

from fastapi import APIRouter

from reward.collect.home import fingerprint
from reward.collect.refusals import Unavailable
from reward.collect.web.dependencies import Db
from rlhf.errors import UserError

router = APIRouter()


@router.get("/healthz")
async def healthz() -> dict:  # needs no thread, of which all may be busy
    return {"status": "ok"}


@router.get("/readyz")
def readyz(database: Db) -> dict:
    """A write is committed, and the schema is this release's; else 503. Says which collection it is to who knows it."""
    try:
        database.probe()
    except UserError as error:
        raise Unavailable(str(error)) from error
    with database.read() as session:
        return {"status": "ok", "collection": fingerprint(session)}
