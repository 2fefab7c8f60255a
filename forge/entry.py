"""What every entry does with what ends it: one line on stderr, and an exit code."""

import sys
from collections.abc import Callable

from forge.errors import ForgeError, Stopped


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
