"""Steps until something ends them. FOLDER is told how each process ended.

HOW: process 1 fails ("raise"), or is killed ("kill"), or that and process 0 goes on sending ("deaf"), which MLX keeps for ever; "" nothing.
"""

import os
import signal
import sys
import time
from pathlib import Path

import forge  # noqa: F401  (before mlx)
from forge.entry import entry
from forge.errors import ForgeError, Stopped, TrainingError
from forge.signals import Interrupts
from forge.training.world import world

FOLDER, HOW = Path(sys.argv[1]), sys.argv[2]


def body(_: list[str]) -> int:
    own = world()

    def tell(code: int, cause: object) -> None:
        (FOLDER / f"{own.rank}.ended").write_text(f"{code} {cause}")

    def send(reason: str | None) -> str | None:
        while True:
            try:
                return own.any(reason)
            except TrainingError:
                if HOW != "deaf":
                    raise

    with Interrupts() as interrupts:
        try:
            with own.telling(lambda cause: tell(5, cause)), interrupts.patient(agree=send) as asked_to_stop:
                step = 0
                while not asked_to_stop():
                    step += 1
                    (FOLDER / f"{own.rank}.running").write_text(str(os.getppid()))
                    if own.rank == 1 and step == 3 and HOW == "raise":
                        raise ForgeError("this process fails")
                    if own.rank == 1 and step == 3 and HOW:
                        os.kill(os.getpid(), signal.SIGKILL)
                    time.sleep(0.05)
        except (ForgeError, Stopped) as error:
            time.sleep(2 if own.first else 0)  # as a tracker may take
            tell(error.exit_code, error)
            raise
    return 0


sys.exit(entry(body, sys.argv[1:]))
