"""The user's mistakes, each with an exit code of its own. A programming error stays a traceback."""


class ForgeError(Exception):
    """Something the user can mend. The message names what, where, the limit and the way out, in one line."""

    exit_code = 1


class ConfigError(ForgeError):
    exit_code = 2


class DataError(ForgeError):
    exit_code = 3


class ModelError(ForgeError):
    exit_code = 4


class TrainingError(ForgeError):
    exit_code = 5


class ReleaseError(ForgeError):
    exit_code = 6


class TrackingError(ForgeError):
    exit_code = 7


class ServingError(ForgeError):
    exit_code = 8


class Stopped(BaseException):
    """SIGINT or SIGTERM arrived. Derives from BaseException, as KeyboardInterrupt does, so that no handler swallows it."""

    def __init__(self, signal_number: int):
        super().__init__(f"stopped by signal {signal_number}")
        self.signal_number = signal_number
        self.way_on = "resume=auto goes on from it"
        self.exit_code = 128 + signal_number
