"""What each command of `python -m reward.collect` does."""

import os
import sys
import time
from argparse import Namespace
from contextlib import contextmanager, nullcontext
from pathlib import Path

from reward.collect import home
from reward.collect.cli import account_commands
from reward.collect.cli.options import parser
from reward.collect.defaults import naming
from reward.collect.integrity.findings import Altered
from reward.collect.people import accounts, tokens
from reward.collect.ranking.items import check_items
from reward.collect.refusals import Damaged, Unavailable
from reward.collect.store import audit, private
from reward.collect.store.collection import collection_of, guidelines_in_force
from reward.collect.store.database import Database
from reward.collect.store.settings import Settings
from reward.collect.store.tables import Collection
from reward.collect.texts import plural
from rlhf.errors import UserError

# What writes more than one transaction of the database; the page goes on meanwhile.
ONE_AT_A_TIME = ("init", "sample", "prioritise", "import")  # an export has a lock of its own
RESTORE = (
    "Put a backup in its place, and before that remove the files of the same name that end in -wal and -shm: they are "
    "of the old one"
)


def run(arguments: list[str]) -> None:
    """Runs a command line. Raises RlhfError for whatever cannot be done as asked; argparse exits with 2 by itself."""
    args = parser().parse_args(arguments)
    args.database = args.database or os.environ.get("COLLECT_DATABASE_URL")
    try:
        with home.one_at_a_time(args.dir) if fills(args) else nullcontext():
            COMMANDS[args.command](args)
    except Unavailable as error:  # whose words are for visitors of the page as well, and do not say which database
        remedy = f"{chr(10) if isinstance(error, Altered) else '. '}{RESTORE}" if isinstance(error, Damaged) else ""
        raise Unavailable(f"{home.open_database(args.dir, args.database).shown()}: {error}{remedy}") from error


def fills(args: Namespace) -> bool:
    """Whether two such commands at once would get in each other's way."""
    only_reads = args.command == "import" and (args.rankings or args.dry_run)
    return args.command in ONE_AT_A_TIME and not only_reads


@contextmanager
def collection(args: Namespace):
    """The database of the collection that the command line names."""
    database = home.open_collection(args.dir, args.database)
    try:
        yield database
    finally:
        database.close()


# The collection


def init(args: Namespace) -> None:
    """Makes a collection; upgrades one that is there, and changes the settings that were given."""
    settings = {name: value for name, value in vars(args).items() if name in Settings.__dataclass_fields__}
    if "criteria" in settings:
        settings["criteria"] = tuple(settings["criteria"])
    guidelines = read_guidelines(args.guidelines)
    database = home.open_database(args.dir, args.database)
    if home.is_there(database):
        upgrade(database, args.name, guidelines, settings)
        close_to_others(database, args.dir)
    else:
        name = args.name or args.dir.absolute().name
        home.create_collection(database, name, guidelines or "", Settings(**settings), time.time())
        print(f"made the collection {name!r} in {database.shown()}")
    with database.write() as session:
        if args.origin:
            collection_of(session).origin = args.origin
        link = home.first_lead_link(session, time.time())
        without_guidelines = not guidelines_in_force(session).text.strip()
    if without_guidelines:
        again = f"python -m reward.collect init{naming(args.dir)} --guidelines FILE"
        print(f"annotators will see no guidelines; {again} adds them, and so does the lead's page")
    if link:
        print(f"open this link once, while the page is served, to make the first account, a lead's:\n  {link}")
    database.close()


def read_guidelines(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--guidelines {path}: cannot be read ({error}); give a Markdown file in UTF-8") from error


def upgrade(database: Database, name: str | None, guidelines: str | None, settings: dict) -> None:
    """Says what it changes in a collection that is there."""
    before = database.revision()
    database.upgrade()
    if (after := database.revision()) != before:
        print(f"schema: {before} -> {after}")
    begin_key(database)
    take_stock(database)
    with database.write() as session:
        changes = home.change_collection(session, name, guidelines, settings, time.time())
    print("\n".join(changes or [f"{database.shown()}: the collection is there, and nothing was to be changed"]))


def close_to_others(database: Database, folder: Path) -> None:
    """An earlier release left some files open."""
    for path in private.open_to_others(*home.files_of(database, folder)):
        private.close_to_others(path)
        print(f"{path}: others on this machine could read it, and cannot any more")


def take_stock(database: Database) -> None:
    """Has the audit tell of the rows of a collection of the first release, and says what does not fit in them."""
    from reward.collect.integrity.verify import take_stock

    with database.write() as session:
        checked = take_stock(session, home.ACTOR, time.time())
    if checked:
        print(f"audit: it tells of all {checked.rows} rows from now on, as they are now")
        for line in checked.findings.lines():
            print(f"warning: {line}; that is how it is told of now", file=sys.stderr)


def begin_key(database: Database) -> None:
    """Goes on with the audit under the key in the environment, if it is new to it."""
    with database.write() as session:
        if fingerprint := audit.begin_key(session, home.ACTOR, time.time()):
            print(f"audit: under the key {fingerprint}... from now on; whoever loses it can add nothing more")


def invite(args: Namespace) -> None:
    """Prints links, one for each person."""
    terms = (args.days, time.time(), args.origin)
    make, whom = (home.reset_link, args.for_handle) if args.for_handle else (home.invite_link, args.role)
    with collection(args) as database:
        for _ in range(args.n):
            with database.write() as session:
                link = make(session, whom, *terms)
            print(link)


def token(args: Namespace) -> None:
    """Prints the secret of a new key for a person's scripts, and beside it what it opens."""
    with collection(args) as database, database.write() as session:
        person = accounts.person_named(session, args.handle)
        secret, made = tokens.create_token(session, person, args.scope, args.days, time.time(), home.ACTOR)
    print(secret)  # alone on stdout, for scripts
    told = f"the key of {person.handle}: {', '.join(made.scopes)}, for {args.days:g} days; it is not shown again"
    print(f"{told}. docs/API.md says what it opens", file=sys.stderr)


def accounts_(args: Namespace) -> None:
    """Lists all accounts, or shows and changes one."""
    with collection(args) as database, database.write() as session:
        lines = account_commands.show_accounts(session, args, time.time())
    print("\n".join(lines or ["nobody has an account yet"]))


def revoke(args: Namespace) -> None:
    """Ends what opens accounts; all that are named, or nothing."""
    with collection(args) as database, database.write() as session:
        lines = [account_commands.revoke(session, beginning, time.time()) for beginning in args.id]
    print("\n".join(lines))


def serve(args: Namespace) -> None:
    """Serves the page until it is stopped."""
    from reward.collect.web import server

    with collection(args) as database:
        for path in private.open_to_others(*home.files_of(database, args.dir))[:1]:
            remedy = f"python -m reward.collect init{naming(args.dir)} closes all that is the collection's"
            print(f"warning: {path} can be read by others on this machine; {remedy}", file=sys.stderr)
        server.serve(
            database.url,
            args.host,
            args.port,
            folder=args.dir,
            behind_proxy=args.behind_proxy,
            origin=args.origin,
            tls_cert=args.tls_cert,
            tls_key=args.tls_key,
        )


def backup(args: Namespace) -> None:
    """Copies the database and checks the copy."""
    from reward.collect.integrity.backup import backup

    with collection(args) as database:
        path, checked = backup(database, args.to or args.dir / "backups", time.time(), args.dir / "versions")
    print(f"{path}: {path.stat().st_size / 1e6:,.1f} MB, whole: {told_of(checked)}")
    into = "as collect.db into an empty folder" if database.is_sqlite else "into an empty database with pg_restore"
    print(f"to restore it: put it {into}, beside a copy of {args.dir / 'versions'}")


def verify(args: Namespace) -> None:
    """Looks for whatever was changed from outside, in the database and in the versions."""
    from reward.collect.integrity.verify import check

    with collection(args) as database, database.read() as session:
        checked = check(session, args.dir / "versions", folders=True)
    checked.findings.require_none()
    print(f"{database.shown()}: whole: {told_of(checked)}, {plural(checked.versions, 'version')}")
    print("\n".join(limits(checked)))


def told_of(checked) -> str:
    return f"{checked.audit_rows} audit rows in one chain, {checked.rows} rows that it tells of"


def limits(checked) -> list[str]:
    """What a check that found nothing cannot know."""
    lines = []
    if not checked.knows_all:
        lines.append("rows of the first release: only hashes of contents were checked; run init, which takes stock")
    elif checked.stock:
        lines.append(f"what was there before audit row {checked.stock} is known as it was found then")
    if checked.keyed_from is None:
        lines.append("without a key, whoever writes the database can write the whole chain anew: docs/collect.md")
    elif checked.keyed_from > 1:
        lines.append(f"the chain has its key from audit row {checked.keyed_from} on")
    return lines


# Answers in


def sample(args: Namespace) -> None:
    """Draws answers from policies and queues them."""
    from reward.collect.intake.importing import queue
    from reward.collect.intake.policies import data_settings, find_policy
    from reward.collect.intake.sampling import Drawing, sample_prompts
    from reward.collect.intake.uncertainty import load_score, prioritise_new

    quieten()
    require_policies(args)
    with collection(args) as database:
        sources = [find_policy(path) for path in args.policy]
        data = data_settings(
            sources,
            prompts=args.prompts,
            heldout=args.heldout,
            max_prompt_tokens=args.max_prompt_tokens,
            max_response_tokens=args.max_response_tokens,
        )
        drawing = Drawing(
            args.num_responses, args.temperature, args.seed, args.batch_size, args.comparison, args.trust_remote_code
        )
        score = load_score(args.prioritise, args.trust_remote_code) if args.prioritise else None
        told = sample_prompts(sources, data, args.num_prompts, drawing)
        if score:
            told.items = prioritise_new(told.items, score, args.random_share, str(args.seed))
        print("\n".join(told.lines()))
        queue(database, lambda: told.items, check_items(database, told.items))


def quieten() -> None:
    """The libraries' progress bars and advice would break ours."""
    from rlhf.run.cli import quieten_libraries

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quieten_libraries()


def require_policies(args: Namespace) -> None:
    """Raises UserError unless the policies and the number of answers go together."""
    from reward.collect.store.settings import MAX_ANSWERS, MIN_ANSWERS

    number = len(args.policy)
    if len(set(args.policy)) < number:
        raise UserError("--policy names the same one twice; name each once")
    if args.comparison and not MIN_ANSWERS <= number <= MAX_ANSWERS:
        raise UserError(
            f"--comparison {args.comparison}: compares {MIN_ANSWERS} to {MAX_ANSWERS} policies, not {number}"
        )
    if not args.comparison and not max(MIN_ANSWERS, number) <= args.num_responses <= MAX_ANSWERS:
        least = f"{MIN_ANSWERS}" if number <= MIN_ANSWERS else f"{number}, one of each policy,"
        raise UserError(f"-k {args.num_responses}: people rank {least} to {MAX_ANSWERS} answers")


def prioritise(args: Namespace) -> None:
    """Gives the open items new places in the queue."""
    from reward.collect.intake.uncertainty import load_score, prioritise_open

    quieten()
    with collection(args) as database:
        score = load_score(args.reward, args.trust_remote_code)
        number = prioritise_open(database, score, args.random_share, time.time(), args.reward)
    print(f"{number} open items are in order of uncertainty, {args.random_share:.0%} of them in random places")


def import_(args: Namespace) -> None:
    """Queues answers, or converts rankings, that were made elsewhere."""
    require_import(args)
    fields = dict(args.field) | dict.fromkeys(args.ignore)
    from reward.collect.intake.answers import AnswerFile
    from reward.collect.intake.importing import convert, import_answers

    if args.rankings:
        return convert(*args.rankings, args.to, args.on_error, fields, dict(args.option))
    with collection(args) as database:
        import_answers(database, AnswerFile(args.file, args.gold, fields), args.on_error, args.dry_run)


def require_import(args: Namespace) -> None:
    if not args.rankings and args.file is None:
        raise UserError("name the file with answers, or give --rankings FORMAT FILE --to OUT")
    if args.rankings and args.to is None:
        raise UserError("--rankings needs --to OUT, the file to write")
    if not args.rankings and (args.to or args.option):
        raise UserError("--to and --option go with --rankings FORMAT FILE")


# Rankings out


def stats(args: Namespace) -> None:
    """Prints tables."""
    from reward.collect.cli.terminal import print_comparisons, print_stats

    with collection(args) as database, database.read() as session:
        if args.comparison is None:
            print_stats(session, session.get_one(Collection, 1).name)
        print_comparisons(session, args.comparison)


def export(args: Namespace) -> None:
    """Writes a new version where there is anything new, and where asked its rankings in another format."""
    from reward.collect import formats
    from reward.collect.cli.terminal import print_version
    from reward.collect.export.versions import export_version, version_rows

    if (args.format is None) != (args.out is None):
        raise UserError("--format and --out belong together; give both or none")
    options = dict(args.option)
    if args.format:  # before there is a version
        known = formats.require_format(args.format, formats.FORMATS, "written")
        formats.check_options(args.format, known.options, options)
        formats.require_new(args.out)
    with collection(args) as database:
        folder, is_new = export_version(database, args.dir, home.ACTOR, time.time())
    if not is_new:
        print(f"nothing new since version {folder.name}, which stands for what there is")
    print_version(folder)
    if args.format:
        written = formats.write(args.format, version_rows(folder, args.format), args.out, **options)
        print(f"{args.out}: {written.records} records of format {args.format}")
        if written.left_out:
            left_out = plural(sum(written.left_out.values()), "ranking")
            told = f"{left_out} that {args.format} cannot hold left out: {formats.reasons(written.left_out)}"
            print(f"{args.out}: {told}", file=sys.stderr)


COMMANDS = {
    "init": init,
    "sample": sample,
    "prioritise": prioritise,
    "import": import_,
    "invite": invite,
    "token": token,
    "accounts": accounts_,
    "revoke": revoke,
    "serve": serve,
    "stats": stats,
    "export": export,
    "backup": backup,
    "verify": verify,
}
