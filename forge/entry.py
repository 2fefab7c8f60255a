"""What every entry does with what ends it: one line on stderr, and an exit code."""

import argparse
import io
import os
import sys
from collections.abc import Callable
from typing import Any, NoReturn, TextIO, cast

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
    stdout = sys.stdout
    sys.stdout = cast(TextIO, _Output(stdout))
    try:
        return body(argv)
    except ForgeError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except Stopped as stop:
        print(f"forge: {stop}; what was saved is kept, and {stop.way_on}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        print(f"forge: {interrupted}", file=sys.stderr)
        return 130
    finally:
        sys.stdout = stdout


class _Output:
    """stdout whose reader may leave (`| head`): what comes after goes nowhere, and ends no run."""

    def __init__(self, stream: TextIO):
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # samples and answers hold any character, and the terminal may not be UTF-8

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        return self._try(lambda: self._stream.write(text)) or 0

    def flush(self) -> None:
        self._try(self._stream.flush)

    def _try(self, task: Callable[[], Any]) -> Any:
        try:
            return task()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
