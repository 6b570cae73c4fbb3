"""`python -m reward.collect COMMAND`. Exit codes: 0 done, 2 user input, 3 artifact refused, 1 our bug."""

import sys
import traceback

from rlhf.errors import RlhfError, UserError

EXTRA = {"alembic", "argon2", "fastapi", "markdown_it", "nh3", "psycopg", "sqlalchemy", "uvicorn"}


def main(arguments: list[str]) -> int:
    """Runs a command; every expected failure is one line."""
    try:
        with_extra()(arguments)
    except RlhfError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `... stats | head`
        sys.stderr.close()
        return 1
    except Exception as error:  # the outermost frame
        line = f"error: {type(error).__name__}: {error}. This is a bug of ours: please report it"
        print(f"{traceback.format_exc()}{line}", file=sys.stderr)
        return 1
    return 0


def with_extra():
    """What runs a command. Raises UserError where the extra is not installed."""
    try:
        from reward.collect.cli.commands import run
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in EXTRA:
            raise
        raise UserError(
            f"the collection server needs {error.name}, of the extra [collect], which a plain installation lacks: "
            'pip install -c constraints.txt -e ".[collect]"'
        ) from None
    return run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
