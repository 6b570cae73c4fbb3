"""How often somebody may try a password, so that nobody guesses one and nobody locks anybody else out.

A failed attempt counts for the handle at its address, for the address, and for the handle wherever it comes from. The
first stops one who guesses from one place, without stopping the person elsewhere; the second one who tries many
handles; the third one who has many addresses, and is slow, since it is the one that others can use up. So a browser in
which this person has signed in before (it holds a cookie that says so, see sessions.known_browser) counts by itself
alone: no one else's failures stop it.
"""

import ipaddress
import math
from uuid import uuid4

from sqlalchemy import delete, func, or_, select
from sqlalchemy.orm import Session

from reward.collect.refusals import TooMany
from reward.collect.store import audit
from reward.collect.store.database import Database
from reward.collect.store.tables import SignInFailure
from rlhf.hashing import text_sha256

MINUTE, HOUR = 60, 3600
LIMITS = {  # kind -> (failures, within seconds)
    "browser": (10, 15 * MINUTE),
    "place": (10, 15 * MINUTE),  # a handle at an address
    "address": (50, 15 * MINUTE),  # which a team may share
    "handle": (100, 24 * HOUR),
}


def keys_of(handle: str, address: str, browser: str | None) -> dict[str, str]:
    """What an attempt counts for: kind -> key. browser: which known one of this person's it is, if it is one."""
    if browser is not None:
        return {"browser": f"browser:{text_sha256(browser)}"}
    network = network_of(address)
    place = text_sha256(f"{handle} {network}")
    return {"place": f"place:{place}", "address": f"address:{network}", "handle": f"handle:{text_sha256(handle)}"}


def network_of(address: str) -> str:
    """The address; of IPv6 the network of 64 bits, all of which one machine can use."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 6 and parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address


def count_attempt(database: Database, keys: dict[str, str], now: float) -> list[str]:
    """Ids of the rows that count this attempt as failed. Raises TooMany where there were too many before."""
    with database.write() as session:
        audit.one_writer(session)  # else attempts at the same moment would not see each other
        _forget_old(session, now)
        for kind, key in keys.items():
            _require_few(session, key, *LIMITS[kind], now)
        rows = [SignInFailure(id=uuid4().hex, key=key, at=now) for key in keys.values()]
        session.add_all(rows)
        return [row.id for row in rows]


def _forget_old(session: Session, now: float) -> None:
    for kind, (_, seconds) in LIMITS.items():
        is_past = or_(SignInFailure.at <= now - seconds, SignInFailure.at > now)  # the latter: the clock was set back
        session.execute(delete(SignInFailure).where(SignInFailure.key.startswith(f"{kind}:"), is_past))


def _require_few(session: Session, key: str, most: int, seconds: int, now: float) -> None:
    count, first = session.execute(
        select(func.count(), func.min(SignInFailure.at)).where(SignInFailure.key == key)
    ).one()
    if count >= most:
        wait = max(1, math.ceil(first + seconds - now))
        raise TooMany(f"Too many failed attempts to sign in. Wait {_told(wait)}{_other_way(seconds)}", wait)


def _told(seconds: int) -> str:
    minutes = math.ceil(seconds / MINUTE)
    return f"{minutes} minutes" if minutes <= 90 else f"{math.ceil(seconds / HOUR)} hours"


def _other_way(seconds: int) -> str:
    if seconds < HOUR:
        return " and try again."
    return ", use a browser in which you have signed in before, or ask the lead for a link to choose a new password."


def forget(session: Session, keys: dict[str, str], attempt: list[str]) -> None:
    """The attempt was right: it is no failure, and neither are the earlier ones from the same place or browser.

    Those of the address stay, else somebody with an account could guess others' passwords for ever; so do those of the
    handle from other places, else each time that the person signs in would give others more guesses.
    """
    own = [key for kind, key in keys.items() if kind in ("browser", "place")]
    forgotten = or_(SignInFailure.key.in_(own), SignInFailure.id.in_(attempt))
    session.execute(delete(SignInFailure).where(forgotten))
