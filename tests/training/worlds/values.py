"""What three processes get from each collective, as JSON in FOLDER."""

import json
import sys
from pathlib import Path
from typing import Any

import forge  # noqa: F401  (before mlx)
from forge.errors import TrainingError
from forge.training import world as module
from forge.training.world import World, world


def values(world: World) -> dict[str, Any]:
    import mlx.core as mx

    rank = world.rank
    found: dict[str, Any] = {"world": [rank, world.size, world.on_machine]}

    names = ["a", "b", "c", "d"]
    streams = [mx.new_stream(mx.cpu) for _ in names]
    tree = {}
    for name, stream in list(zip(names, streams, strict=True))[:: 1 if rank else -1]:  # each process builds its graph another way round
        tree[name] = mx.add(mx.full((10,), ord(name) - ord("a"), mx.float32), rank, stream=stream)
    module._MESSAGE_BYTES = 64  # so that each array is a message
    messages = world.total(tree)
    world.wait(messages)
    found["messages"] = {name: messages[name].tolist() for name in names}
    module._MESSAGE_BYTES = 2**25

    half = mx.array([256.0 if rank == 0 else 1.0], dtype=mx.bfloat16)
    whole = mx.array(2**24 + rank, dtype=mx.int32)
    summed = world.total([(half, whole), mx.zeros((0, 3)), mx.array(0.5)])
    world.wait(summed)
    found["total"] = [[summed[0][0].item(), summed[0][1].item()], list(summed[1].shape), summed[2].item()]
    found["types"] = [str(array.dtype) for array in (*summed[0], *summed[1:])]
    given = world.give({"w": mx.array([0.1, -2.0]) * (rank + 1), "step": mx.array(7 + rank, dtype=mx.uint64)})
    world.wait(given)
    found["given"] = {name: array.tolist() for name, array in given.items()}

    found["agree"] = [
        world.agree(f"run é {rank}"),
        world.agree(None),
        world.agree("" if rank == 2 else None, rank=2),
        world.agree("x" * 10**5),
    ]
    found["any"] = [world.any(None), world.any(f"reason {rank}" if rank else None)]
    found["join"] = world.join([[item, item / 3] for item in world.share(range(7))])
    try:
        world.require_same("data", "d")
        world.require_same("weights", "other" if rank == 1 else "w")
    except TrainingError as error:
        found["same"] = str(error)

    log = Path(sys.argv[1], "turns")
    with world.in_turn(), log.open("a") as turns:
        turns.write(f"{rank}")
    world.barrier()
    found["turns"] = log.read_text()
    with world.quiet():
        print(f"process {rank} prints", flush=True)
    return found


if __name__ == "__main__":
    own = world()
    Path(sys.argv[1], f"{own.rank}.json").write_text(json.dumps(values(own)))
