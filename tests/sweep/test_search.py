"""How a sweep's jobs are named."""

from forge.sweep.search import Proposal


def test_a_name_holds_as_much_of_a_key_as_tells_it_from_the_others() -> None:
    swept = ("data.sources.a.weight=1", "++data.sources.b.weight=2", "optimizer.lr=1e-3", "trainer.budget=12\\ steps")
    assert Proposal(0, swept, swept).name == "a.weight=1 b.weight=2 lr=1e-3 budget=12 steps"
    assert Proposal(4, (), ()).name == "job 5"
