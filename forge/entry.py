"""What every entry does with what ends it: one line on stderr, and an exit code."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from forge.errors import ConfigError, ForgeError, Stopped


class Parser(argparse.ArgumentParser):
    """For an entry that looks at runs, and so has no configuration: a mistake is one line, as everywhere."""

    def __init__(self, module: str, description: str):
        super().__init__(f"python -m {module}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        self.add_argument("--uri", help="the tracking store (default: MLFLOW_TRACKING_URI, else mlflow.db at the root)")

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; write {' '.join(self.format_usage().split()[1:])}")


def entry(body: Callable[[list[str]], int], argv: list[str], interrupted: str = "interrupted") -> int:
    """body(argv): its exit code, an error's own, or 128 + a signal's number. A programming error stays a traceback."""
    try:
        return body(argv)
    except ForgeError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except Stopped as stop:
        print(f"forge: {stop}; what was saved is kept, and resume=auto goes on from it", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print(f"forge: {interrupted}", file=sys.stderr)
        return 130
