"""The command line of `python -m reward.collect`."""

import argparse
import inspect
import re
from dataclasses import fields
from pathlib import Path

from reward.collect.defaults import DEFAULT_FOLDER, DEFAULT_PORT, LOCAL
from reward.collect.store.settings import Settings

# The names in formats.FORMATS and formats.READERS, whose import takes a while
WRITTEN = ("canonical", "trl", "trl_implicit", "hh", "openai", "kto", "sft", "csv", "parquet")
READ = ("canonical", "parquet", "trl", "trl_implicit", "hh", "openai", "argilla", "label_studio", "columns", "rows")
READ += ("ultrafeedback", "nectar", "stack_answers", "stack_paired", "shp", "webgpt", "pku", "arena", "helpsteer")
READ += ("helpsteer_pairs", "helpsteer3", "alpaca_farm", "oasst")
DESCRIPTION = (
    "Collect preference rankings: people rank answers in a browser, and what they entered trains the reward model."
)
EXAMPLES = """\
a first round:
  python -m reward.collect init --guidelines guidelines.md
  python -m reward.collect sample --policy outputs/toy/sft --prompts data/toy/prompts.jsonl
  python -m reward.collect serve
  python -m reward.collect invite -n 3
  python -m reward.collect export
  python -m stages.reward data.rankings=outputs/collect/versions/1
"""


class Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, except where there is none."""

    def _get_help_string(self, action):
        shows = action.default not in (None, False, [], argparse.SUPPRESS) and action.option_strings
        return super()._get_help_string(action) if shows else action.help


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m reward.collect", description=DESCRIPTION, epilog=EXAMPLES, formatter_class=Help
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (summary, add) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, formatter_class=Help)
        place = command.add_argument_group("the collection")
        place.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help="its folder")
        url = "its database, sqlite:///PATH or postgresql://USER@HOST/NAME; default: collect.db in the folder. "
        help = f"{url}COLLECT_DATABASE_URL in the environment does as well"
        place.add_argument("--database", metavar="URL", help=help)
        add(command)
    return top


def add_init(command) -> None:
    command.add_argument("--name", help="what the page calls the collection (default: the folder's name)")
    command.add_argument(
        "--guidelines", type=Path, metavar="FILE", help="Markdown that annotators see beside the answers"
    )
    add_origin(command)
    group = command.add_argument_group("settings", "how work is handed out and judged; run init again to change them")
    for field in fields(Settings):
        add_setting(group, field)


def add_setting(group, field) -> None:
    """An option for a field of Settings; its help is the comment beside the field."""
    flag, text = f"--{field.name.replace('_', '-')}", comments().get(field.name, field.name.replace("_", " "))
    default = " ".join(field.default) if isinstance(field.default, tuple) else field.default
    shown = {"default": argparse.SUPPRESS, "help": f"{text} (default: {default})" if default != "" else text}
    if field.type is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, **shown)
    elif field.type in (int, float):
        group.add_argument(flag, type=field.type, metavar="N", **shown)
    else:
        group.add_argument(flag, nargs="*", metavar="NAME", **shown)


def comments() -> dict[str, str]:
    """Field of Settings -> the comment on its line."""
    found = re.findall(r"^    (\w+):.*?#\s*(.+)$", inspect.getsource(Settings), re.MULTILINE)
    return {name: text.replace("%", "%%") for name, text in found}


def add_sample(command) -> None:
    command.add_argument(
        "--policy",
        action="append",
        required=True,
        metavar="PATH",
        help="an SFT or PPO artifact, a model's folder or a hub id; several share out the answers",
    )
    command.add_argument(
        "--prompts", required=True, metavar="SOURCE", help="as data.prompts: a file, a folder, a hub id"
    )
    command.add_argument("--num-prompts", type=positive, metavar="N", help="at most so many of them (default: all)")
    command.add_argument(
        "--heldout", metavar="SOURCE", help="as data.heldout: prompts that must not be ranked for training"
    )
    command.add_argument(
        "-k", "--num-responses", type=positive, default=4, metavar="K", help="distinct answers per prompt, 2 to 9"
    )
    command.add_argument("--temperature", type=above_zero, default=1.0, metavar="T", help="of sampling")
    command.add_argument("--seed", type=int, default=0, help="of prompts and answers: the same one gives the same")
    command.add_argument(
        "--comparison",
        metavar="NAME",
        help="compare the policies blindly: one answer of each per prompt, on prompts that none was trained on",
    )
    command.add_argument(
        "--max-prompt-tokens", type=positive, metavar="N", help="longer prompts (default: the artifact's)"
    )
    command.add_argument(
        "--max-response-tokens", type=positive, metavar="N", help="where answers end (default: the artifact's)"
    )
    command.add_argument("--batch-size", type=positive, default=64, metavar="N", help="answers decoded at once")
    command.add_argument("--prioritise", metavar="REWARD", help="a reward artifact: first what it is least sure of")
    add_model_options(command)


def add_prioritise(command) -> None:
    command.add_argument("reward", metavar="REWARD", help="a reward artifact: first what it is least sure of")
    add_model_options(command)


def add_model_options(command) -> None:
    help = "share of the items that keep a random place, so that the data stay representative"
    command.add_argument("--random-share", type=share, default=0.3, metavar="SHARE", help=help)
    command.add_argument(
        "--trust-remote-code", action="store_true", help="let a model run its own code; read that first"
    )


def add_import(command) -> None:
    command.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help="records of prompt, responses and perhaps sources"
    )
    command.add_argument(
        "--gold", action="store_true", help="the right ranking is in `ranks`: hidden items that check annotators"
    )
    command.add_argument(
        "--dry-run", action="store_true", help="say what would come in and what is wrong, and store nothing"
    )
    command.add_argument(
        "--rankings",
        nargs=2,
        metavar=("FORMAT", "FILE"),
        help="turn rankings made elsewhere into the file --to, for data.rankings; the collection stays as it is. "
        f"FORMAT: {', '.join(READ)}; docs/rankings.md shows each",
    )
    command.add_argument("--to", type=Path, metavar="OUT", help="the file that --rankings writes")
    add_options(command, "of the format of --rankings, e.g. --option score=overall_score with ultrafeedback")
    help = "error: a bad record is an error, and nothing comes in; skip: leave bad records out, and say which"
    command.add_argument("--on-error", choices=["error", "skip"], default="error", help=help)
    help = "their name for a field of ours, e.g. --field responses=answers; several may be given"
    command.add_argument("--field", type=mapped, action="append", default=[], metavar="OURS=THEIRS", help=help)
    help = "a column that is named like a field of ours and means something else; several may be given"
    command.add_argument("--ignore", action="append", default=[], metavar="COLUMN", help=help)


def add_invite(command) -> None:
    command.add_argument("--role", choices=["annotator", "lead"], default="annotator", help="leads see everything")
    command.add_argument("--days", type=above_zero, default=7.0, metavar="DAYS", help="that a link can be used")
    who = command.add_mutually_exclusive_group()
    who.add_argument("-n", type=positive, default=1, metavar="N", help="links, each for one person")
    help = "instead, a link by which this person, who has an account, chooses a new password"
    who.add_argument("--for", dest="for_handle", metavar="HANDLE", help=help)
    add_origin(command)


def add_token(command) -> None:
    command.add_argument("handle", metavar="HANDLE", help="whose key it is; they need an account")
    help = "what it opens; several may be given. annotate: rank as this person; read, export: for leads"
    command.add_argument("--scope", choices=["annotate", "read", "export"], action="append", required=True, help=help)
    command.add_argument("--days", type=above_zero, default=30.0, metavar="DAYS", help="that it can be used, to 366")


def add_accounts(command) -> None:
    command.add_argument("handle", nargs="?", metavar="HANDLE", help="only this one, with its browsers and tokens")
    work = command.add_mutually_exclusive_group()
    work.add_argument("--pause", action="store_true", help="they store nothing, and their tokens open nothing")
    work.add_argument("--resume", action="store_true", help="they go on where they were")
    command.add_argument("--role", choices=["annotator", "lead"], help="what they may see and do from now on")
    command.add_argument("--sign-out", action="store_true", help="in all browsers; revokes their tokens too")


def add_revoke(command) -> None:
    help = "of a browser, a token or an invite, as accounts and accounts HANDLE show it; its beginning is enough"
    command.add_argument("id", nargs="+", metavar="ID", help=help)


def add_origin(command) -> None:
    command.add_argument(
        "--origin",
        type=lambda url: url.rstrip("/"),
        metavar="URL",
        help=f"where people reach the page: links begin with it (default: where it was served last, else {LOCAL})",
    )


def add_serve(command) -> None:
    command.add_argument(
        "--host", default="127.0.0.1", help="address to listen at; beyond this machine only with TLS or a proxy"
    )
    command.add_argument("--port", type=int, default=DEFAULT_PORT, help="port to listen at")
    command.add_argument(
        "--origin", metavar="URL", help="https://HOST where people reach the page, if not on this machine"
    )
    command.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate chain, PEM")
    command.add_argument("--tls-key", type=Path, metavar="FILE", help="its key, PEM")
    command.add_argument("--behind-proxy", action="store_true", help="a proxy in front brings TLS and X-Forwarded-For")


def add_stats(command) -> None:
    command.add_argument("--comparison", metavar="NAME", help="only this comparison of policies")


def add_export(command) -> None:
    help = f"write the version to --out in another format as well: {', '.join(WRITTEN)}"
    command.add_argument("--format", metavar="NAME", help=help)
    command.add_argument("--out", type=Path, metavar="FILE", help="the file that --format writes")
    add_options(command, "of the format, e.g. --option strategy=best_vs_worst with trl")


def add_options(command, help: str) -> None:
    command.add_argument("--option", type=named, action="append", default=[], metavar="NAME=VALUE", help=help)


def named(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"{text!r} must be NAME=VALUE")
    return name, value


def mapped(text: str) -> tuple[str, str]:
    ours, theirs = named(text)
    if not ours or not theirs:
        raise argparse.ArgumentTypeError(f"{text!r} must be OURS=THEIRS; --ignore leaves a column out")
    return ours, theirs


def add_backup(command) -> None:
    command.add_argument(
        "--to", type=Path, metavar="FOLDER", help="where the copy goes (default: backups in the folder)"
    )


def positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{value} must be 1 or more")
    return value


def above_zero(text: str) -> float:
    if not 0 < (value := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"{value} must be above 0")
    return value


def share(text: str) -> float:
    if not 0 <= (value := float(text)) <= 1:
        raise argparse.ArgumentTypeError(f"{value} must be a share, 0 to 1")
    return value


COMMANDS = {
    "init": ("make a collection, or upgrade it and change its settings", add_init),
    "sample": ("draw answers from policies and queue them", add_sample),
    "prioritise": ("put first what a reward model is least sure of", add_prioritise),
    "import": ("queue answers, or convert rankings, that were made elsewhere", add_import),
    "invite": ("print links that each make one account", add_invite),
    "token": ("print a key for scripts that use the API", add_token),
    "accounts": ("list accounts; pause, resume and sign out", add_accounts),
    "revoke": ("end browsers' sessions, tokens and invites", add_revoke),
    "serve": ("open the page", add_serve),
    "stats": ("show progress, agreement, annotators and comparisons", add_stats),
    "export": ("write the rankings as a new version, for data.rankings", add_export),
    "backup": ("copy the database, and check the copy", add_backup),
    "verify": ("look for what was changed from outside, and name each row", lambda command: None),
}
