"""What vLLM is asked for and what becomes of its answers, against a stand-in with its interface.

vLLM itself runs on no machine of the tests; CONTRIBUTING.md says how to try it by hand.
"""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from xwincli.engines import Ask, find
from xwincli.engines.vllm import first_seed
from xwincli.errors import XwinError
from xwincli.settings import Device, Sampling


class Engine:
    """Finishes one request a step, the last first, and notes what it was told."""

    def __init__(self) -> None:
        self.model_config = SimpleNamespace(max_model_len=60)
        self.requests: dict[str, tuple[Any, Any]] = {}
        self.asked: list[tuple[Any, Any]] = []
        self.aborted: list[str] = []
        self.most = 0

    def add_request(self, name: str, prompt: Any, parameters: Any) -> None:
        self.requests[name] = (prompt, parameters)
        self.asked.append((prompt, parameters))
        self.most = max(self.most, sum(p.n for _, p in self.requests.values()))

    def step(self) -> list[Any]:
        name = [*self.requests][-1]
        prompt, p = self.requests.pop(name)
        text = [prompt["prompt_token_ids"][-1], *p.stop_token_ids[:1]]
        outputs = [
            SimpleNamespace(index=i, token_ids=text, finish_reason="stop", cumulative_logprob=-0.5 * i)
            for i in reversed(range(p.n))
        ]
        waiting = [SimpleNamespace(finished=False, request_id=n, outputs=[]) for n in self.requests]
        return [*waiting, SimpleNamespace(finished=True, request_id=name, outputs=outputs)]

    def abort_request(self, names: list[str]) -> None:
        self.aborted += names


@pytest.fixture
def engine(monkeypatch, policy):
    module: Any = ModuleType("vllm")
    inner = Engine()
    module.__version__, module.SamplingParams = "0", lambda **given: SimpleNamespace(**given)
    module.LLM = lambda **given: SimpleNamespace(llm_engine=inner, given=given)
    monkeypatch.setitem(sys.modules, "vllm", module)
    return find("vllm", str(policy), Device(device="cpu"), 8), inner


def asks(count: int, n: int = 4) -> list[Ask]:
    return [Ask(f"k{i}", [{"role": "user", "content": f"fox {i}"}], n, f"p{i}") for i in range(count)]


def test_every_ask_is_answered_once_in_order_of_its_indices(engine):
    vllm, inner = engine
    found = dict(vllm.generate(iter(asks(300)), Sampling(top_p=0.9, top_k=5, min_p=0.1, stop=["x"]), 3))
    assert sorted(found) == sorted(a.key for a in asks(300))
    assert all([r.index for r in rs] == [0, 1, 2, 3] for rs in found.values())
    assert found["k7"][2].logprob == -1.0 and found["k7"][2].finish == "stop" and found["k7"][2].tokens == 2
    assert 512 < inner.most <= 8 + 512 + 4, "the queue is fed as it empties"
    parameters = inner.asked[0][1]
    assert (parameters.top_p, parameters.top_k, parameters.min_p, parameters.stop) == (0.9, 5, 0.1, ["x"])
    assert parameters.stop_token_ids == sorted(vllm.loaded.template.stop_ids)
    assert inner.asked[0][0]["prompt_token_ids"] == vllm.loaded.template.prompt_ids(asks(1)[0].messages)


def test_an_index_has_one_seed_whoever_asks_for_it():
    one, later = Ask("k", [], 4, "p"), Ask("k", [], 2, "p", first=2)
    assert first_seed(1, later) == first_seed(1, one) + 2
    assert len({first_seed(s, Ask("k", [], 1, p)) for s in range(30) for p in "abc"}) == 90
    assert all(0 <= first_seed(s, one) < 2**31 for s in range(-50, 50))


def test_a_prompt_without_room_is_refused_and_an_end_gives_the_rest_up(engine):
    vllm, inner = engine
    long = Ask("long", [{"role": "user", "content": "fox " * 90}], 2, "p")
    answers = vllm.generate(iter([long, *asks(9)]), Sampling(), 0)
    key, error = next(answers)
    assert key == "long" and isinstance(error, XwinError) and "leaves no room" in error.message
    next(answers)
    answers.close()
    assert len(inner.aborted) == 8


def test_without_vllm_and_with_an_adapter_the_remedy_is_told(monkeypatch, engine, tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(XwinError, match="this is an adapter"):
        find("vllm", str(tmp_path), Device(), 8)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(XwinError, match="which is not installed"):
        find("vllm", "m", Device(), 8)
