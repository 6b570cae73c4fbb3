"""From names of files in conf and overrides to a checked config, without torch."""

from pathlib import Path

# By its place, not as the package `conf`: a folder of that name, where a command is started, would hide ours.
CONF = str(Path(__file__).parents[1] / "conf")
