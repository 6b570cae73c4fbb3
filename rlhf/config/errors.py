"""What Hydra and OmegaConf find wrong with a config, as one line: key, value, rule, remedy."""

import re
import shlex
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from rlhf.config.keys import all_keys, did_you_mean
from rlhf.config.schema import Config
from rlhf.errors import UserError


@contextmanager
def config_errors(overrides: Sequence[str] = ()):
    """Raises as a UserError what is wrong with a config. overrides: as they were given, on the command line or not."""
    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"config: {told(error, overrides)}") from error


def told(error: Exception, overrides: Sequence[str] = ()) -> str:
    """What to tell the user about an error of Hydra or OmegaConf."""
    if isinstance(error, OverrideParseException):
        return _told_syntax(error.override, overrides)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _told_missing_file(error)
    if ambiguous := re.match("Ambiguous value for argument '(.*)'\n", str(error)):
        return _told_comma(ambiguous[1])
    if several := re.match("Multiple values for (\\S+?)\\.", str(error)):
        return f"{several[1]} is chosen already; choose another one without a plus, {several[1]}=..."
    return _told_key(error)


def _told_key(error: Exception) -> str:
    cause = _origin(error)
    key = getattr(cause, "full_key", None) or ""
    file = re.match("In '(.+?)': ", str(error))
    place = f"{file[1]}: " if file and key else ""
    if isinstance(cause, MissingMandatoryValue):
        return f"{place}{key} is not set; give it a value, {key}=..."
    if "not in" in str(cause) and key:
        return f"{place}no key '{key}'{_remedy_for(key, getattr(cause, 'object_type', None))}"
    text = " ".join(str(cause).split(" full_key:")[0].split())
    text = text.split(" object_type=")[0]
    if null := re.fullmatch("field '(.+)' is not Optional", text):
        return f"{place}{null[1]}=null: it needs a value"
    if shape := _remedy_for_shape(text):
        return f"{place}{key}: {shape}"
    if re.search("Interpolation key '[A-Z_]+' not found", text):
        text += "; an environment variable is written ${oc.env:NAME}"
    return f"{place}{key}: {text}" if key and key not in text else place + text


def _remedy_for_shape(text: str) -> str:
    """Of a single value where a list is wanted, or of a text where an item with keys is; else nothing."""
    if item := re.fullmatch(r"Invalid type assigned: str is not a subclass of RewardTerm\. value: (.*)", text):
        return f"an item has keys; write {{source: {item[1]}}}"
    if "is not a ListConfig" in text or text == "Cannot merge DictConfig with ListConfig":
        return "this is a list; put its items in brackets, [...]"
    return ""


def _remedy_for(key: str, section: type | None) -> str:
    if key.startswith("data.fields."):
        return f". A field's name is added with a plus: +{key}=..."
    if is_dataclass(section) and section is not Config and "." not in key:  # of an item in a list
        return f"; there are {', '.join(field.name for field in fields(section))}"
    return f".{did_you_mean(key, all_keys(Config))}"


def _origin(error: BaseException) -> BaseException:
    """The error behind this one that names a key of the config; where none does, the one it all began with."""
    behind = error
    while behind is not None:
        if getattr(behind, "full_key", None):
            return behind
        behind = behind.__cause__ or behind.__context__
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _told_missing_file(error: MissingConfigException) -> str:
    """Of a group: its files, and how one of the user's own is found."""
    group, _, name = error.missing_cfg_file.rpartition("/")
    if not group:
        return " ".join(str(error).split())
    line = f"no {group} '{name}'; there are {', '.join(error.options or [])}"
    own = [folder for folder in ("conf", ".") if Path(folder, group, f"{name}.yaml").is_file()]
    if own:
        return f"{line}. Your {Path(own[0], group, name)}.yaml is read with --config-dir {own[0]}"
    return f"{line}. One of your own, DIR/{group}/{name}.yaml, is read with --config-dir DIR"


def _told_comma(argument: str) -> str:
    key, _, value = argument.partition("=")
    text, items = _for_the_shell(f"{key}={quoted(value)}"), _for_the_shell(f"{key}=[{value}]")
    return f"{argument} may be a text, a list or a sweep: write {text} or {items}, or add -m to run one job for each"


def _told_syntax(argument: str, overrides: Sequence[str]) -> str:
    """Of an argument that Hydra cannot read: what is wrong with it, and the argument as it has to be written."""
    key, is_setting, value = argument.partition("=")
    if argument.startswith("-"):
        return told_option(argument)
    if not is_setting:
        return _told_part(argument, overrides)
    if place := re.fullmatch(r"(.+)\[(\d+)\](.*)", key):
        return f"'{key}' is no key; an item of a list is named by its number: {place[1]}.{place[2]}{place[3]}=..."
    if written := _readable(key, value):
        return f"{argument} holds a sign that Hydra reads in its own way; write {_for_the_shell(written)}"
    return f"{argument} cannot be read; put quotes around texts with other signs than letters, digits and ._-/:@"


def told_option(argument: str) -> str:
    return f"no option '{argument}'; settings are KEY=VALUE without dashes, and --help shows the options"


def _told_part(argument: str, overrides: Sequence[str]) -> str:
    """Of an argument without `=`: often the rest of a value with a space, which the shell took apart."""
    words = list(overrides)
    place = words.index(argument) if argument in words else 0
    begin = next((i for i in range(place - 1, -1, -1) if "=" in words[i]), None)
    if begin is None:
        return f"'{argument}' is no setting; settings are KEY=VALUE, and --help shows which there are"
    end = next((i for i in range(place, len(words)) if "=" in words[i] or words[i].startswith("-")), len(words))
    key, _, value = " ".join(words[begin:end]).partition("=")
    whole = _for_the_shell(f"{key}={quoted(value)}")
    return f"'{argument}' is no setting, KEY=VALUE; if it belongs to the value before it, write {whole}"


def _readable(key: str, value: str) -> str | None:
    """The setting with quotes for Hydra, around the whole value or around the texts in a list or mapping."""
    if value[:1] in ("[", "{"):
        value = re.sub(r"[^\[\]{},:\s'\"][^\[\]{},'\"]*?(?=\s*(?:[\]},]|: |$))", lambda text: _bare(text[0]), value)
    else:
        value = quoted(value)
    written = f"{key}={value}"
    try:
        OverridesParser.create().parse_overrides([written])
    except HydraException:
        return None
    return written


def _bare(text: str) -> str:
    """A text in a list, with quotes only where it needs them."""
    return text if re.fullmatch(r"[\w./:@%+-]*", text, re.ASCII) else quoted(text)


def quoted(value: str) -> str:
    """A text as Hydra reads it back, whatever signs it holds."""
    return QuotedString(value, Quote.single).with_quotes()


def _for_the_shell(argument: str) -> str:
    """An argument as it is typed: in double quotes where these keep it as it is."""
    return shlex.quote(argument) if re.search(r'[$`"\\!]', argument) else f'"{argument}"'
