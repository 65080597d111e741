"""The openai engine against a server that fails in every way: nothing lost, nothing twice, the key nowhere."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import faulty
import pytest
from faulty import Faulty

from xwincli import engines
from xwincli.engines import Ask
from xwincli.errors import USAGE, XwinError
from xwincli.settings import Device, Sampling, Server

KEY = "sk-nobody-may-see-this-0123456789"


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def asks(count: int, n: int = 4) -> list[Ask]:
    return [Ask(f"k{i}", [{"role": "user", "content": f"question {i}"}], n, f"p{i}") for i in range(count)]


def engine(server: Faulty, arguments: dict | None = None, **options):
    options = {"timeout": 20.0, "retries": 4} | options
    return engines.find(
        "openai", "m", Device(), 1, server=Server(base_url=server.url, **options), template_arguments=arguments
    )


def answers(server: Faulty, wanted: list[Ask], sampling: Sampling | None = None, seed: int = 0, **options) -> dict:
    got = list(engine(server, **options).generate(wanted, sampling or Sampling(), seed))
    assert len({key for key, _ in got}) == len(got) == len(wanted)
    return dict(got)


def complete(found: dict, n: int = 4) -> None:
    for key, responses in found.items():
        assert not isinstance(responses, XwinError), responses
        assert [r.index for r in responses] == list(range(n))
        assert all(r.text.endswith(f"question {key[1:]}") for r in responses)
        assert len({r.text for r in responses}) == n


def test_n_at_once_with_all_a_response_holds():
    with Faulty() as server:
        found = answers(server, asks(3), Sampling(temperature=0.7, top_p=0.9, max_tokens=5, stop=["#"]))
        again = answers(server, asks(3)[::-1], Sampling(temperature=0.7, top_p=0.9, max_tokens=5, stop=["#"]))
        other = answers(server, asks(3), seed=1)
    complete(found)
    for r in found["k0"]:
        assert (r.tokens, r.logprob, r.extra) == (2, -0.75, {}) and r.finish in ("stop", "length")
    texts = {k: [r.text for r in rs] for k, rs in found.items()}
    assert texts == {k: [r.text for r in rs] for k, rs in again.items()}
    assert texts != {k: [r.text for r in rs] for k, rs in other.items()}
    body = next(b for b in server.requests if faulty.prompt_of(b) == "question 0")
    assert 0 <= body.pop("seed") < 2**31
    assert body == {
        "model": "m", "messages": [{"role": "user", "content": "question 0"}], "n": 4, "logprobs": True,
        "temperature": 0.7, "top_p": 0.9, "max_tokens": 5, "stop": ["#"],
    }  # fmt: skip
    assert server.keys == {f"Bearer {KEY}"}


def test_only_what_was_set_is_sent():
    sampling = Sampling(top_k=5, min_p=0.1, repetition_penalty=1.2)
    messages = [{"role": "user", "content": "hi", "note": "ours alone"}]
    with Faulty() as server:
        list(engine(server, {"enable_thinking": False}).generate([Ask("k", messages, 1, "p")], sampling, 0))
    body = server.requests[0]
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (5, 0.1, 1.2)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["messages"] == [{"role": "user", "content": "hi"}]
    assert not {"n", "top_p", "stop", "max_completion_tokens"} & body.keys()


def test_choices_out_of_order_come_by_index():
    with Faulty() as right, Faulty(lambda body, before: faulty.backwards) as server:
        assert answers(server, asks(5)) == answers(right, asks(5))


@pytest.mark.parametrize("fault", [faulty.one, faulty.few], ids=["one whatever n", "one too few"])
def test_responses_that_are_missing_are_asked_for(fault):
    with Faulty(lambda body, before: fault) as server:
        complete(answers(server, asks(20)))
    seeds = [(faulty.prompt_of(b), b["seed"]) for b in server.requests]
    assert len(set(seeds)) == len(seeds)
    if fault is faulty.one:  # learned from the first wave: from then on nobody asks for several
        assert sum("n" in b for b in server.requests) <= 8 and len(server.requests) == 80


def test_a_reply_that_once_was_short_does_not_make_the_server_slow():
    with Faulty(lambda body, before: faulty.few if faulty.prompt_of(body) == "question 9" else None) as server:
        complete(answers(server, asks(12), concurrency=1))
    assert len(server.requests) == 13


@pytest.mark.parametrize(
    ("field", "message"),
    [("n", ""), ("n", "Only one completion choice is allowed"), ("seed", ""), ("logprobs", "logprobs: unsupported")],
)
def test_what_a_server_refuses_is_left_out_and_told_once(field, message, capsys):
    with Faulty(faulty.refuses(field, message)) as server:
        found = answers(server, asks(30))
    refused = sum(field in b for b in server.requests)
    assert 1 <= refused <= 8
    if field == "seed":  # texts of the n choices differ by their number
        complete(found)
    else:
        assert [r.index for r in found["k29"]] == [0, 1, 2, 3]
    others = {"n", "seed", "logprobs"} - {field}
    assert all(others <= b.keys() for b in server.requests if field != "n") and "seed" in {*server.requests[-1], field}
    told = capsys.readouterr().err.count(f"does not take {field}")
    assert told == (0 if field == "n" else 1)
    if field == "logprobs":
        assert found["k1"][0].logprob is None and found["k1"][0].tokens is None  # of four choices one count is known


def test_a_refusal_that_names_nothing_is_found_out():
    def script(body, before):
        return faulty.status(400, "bad request") if {"n", "seed"} & body.keys() else None

    with Faulty(script) as server:
        found = answers(server, asks(6, n=2))
    assert {len(r) for r in found.values()} == {2} and found["k0"][0].tokens == 3  # the usage of a single choice


def test_max_tokens_has_another_name_elsewhere():
    text = "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    with Faulty(faulty.refuses("max_tokens", text)) as server:
        complete(answers(server, asks(10), Sampling(max_tokens=7)))
    assert server.requests[-1]["max_completion_tokens"] == 7 and "max_tokens" not in server.requests[-1]


@pytest.mark.parametrize(("option", "flag"), [("top_k", "--top-k"), ("repetition_penalty", "--repetition-penalty")])
def test_a_sampling_option_is_never_dropped(option, flag):
    script = faulty.refuses(option, f"Unexpected fields in the request: {{'{option}'}}")
    with Faulty(script) as server, pytest.raises(XwinError, match=f"refuses {flag}"):
        answers(server, asks(5), Sampling(**{option: 3}))


@pytest.mark.parametrize(
    ("code", "match"),
    [(401, "key is not accepted"), (403, "forbidden"), (404, "no such address or model 'm'"), (402, "nothing is left")],
)
def test_what_concerns_every_request_stops_the_run(code, match):
    with Faulty(lambda body, before: faulty.status(code, f"bad key {KEY}")) as server:
        with pytest.raises(XwinError, match=match) as e:
            answers(server, asks(100))
        assert KEY not in e.value.message + e.value.hint and "***" in e.value.message
        assert len(server.requests) <= 16


def test_no_server_at_all_stops_the_run():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{s.getsockname()[1]}/v1"
    nobody = engines.find("openai", "m", Device(), 1, server=Server(base_url=url, retries=1))
    with pytest.raises(XwinError, match=r"cannot connect .*tried 2 times"):
        list(nobody.generate(asks(50), Sampling(), 0))


def test_one_prompt_that_cannot_be_answered_fails_alone():
    def filtered(choices):
        choices[1]["finish_reason"] = "content_filter"
        return choices

    def script(body, before):
        return {
            "question 1": faulty.changed(filtered),
            "question 2": faulty.status(400, "the prompt is longer than the context"),
            "question 3": faulty.status(500, "out of luck"),
            "question 4": faulty.changed(lambda cs: [{**c, "message": {"content": None}} for c in cs]),
            "question 5": faulty.raw('{"choices": [{"message": {"content": 5}}]}'),
        }.get(faulty.prompt_of(body))

    with Faulty(script) as server:
        found = answers(server, asks(7), retries=1)
    errors = {k: v.message for k, v in found.items() if isinstance(v, XwinError)}
    complete({k: v for k, v in found.items() if k not in errors})
    assert errors == {
        "k1": "response 1 ended with 'content_filter', not with an answer",
        "k2": "the server refuses the request: 400 the prompt is longer than the context",
        "k3": "500 out of luck (tried 2 times)",
        "k4": "response 0 came without content (stop)",
        "k5": errors["k5"],
    }
    assert errors["k5"].startswith("an answer that is no chat completion: Expected `str | null`, got `int`")


def test_thinking_that_a_server_tells_apart_is_kept_apart():
    def thought(choices):
        message = {"content": None, "reasoning_content": "hm"}
        return [{**c, "message": message, "finish_reason": "length"} for c in choices]

    with Faulty(lambda body, before: faulty.changed(thought)) as server:
        (response,) = answers(server, asks(1, n=1))["k0"]
    assert (response.text, response.finish, response.extra) == ("", "length", {"thinking": "hm"})


def test_a_stop_text_a_server_leaves_is_cut():
    with Faulty() as server:
        for r in answers(server, asks(1), Sampling(stop=["tion"]))["k0"]:
            assert r.text.endswith(" ques") and r.finish == "stop"


@pytest.mark.parametrize("header", [{"retry_after": "0.4"}, {"retry_after_ms": "400"}])
def test_a_busy_server_is_left_alone_as_long_as_it_asks(header):
    def script(body, before):
        return faulty.status(429, "slow down", **header) if len(server.requests) <= 2 else None

    with Faulty(script) as server:
        complete(answers(server, asks(3), concurrency=2))
    assert server.times[2] - server.times[0] >= 0.35
    assert len(server.requests) == 5


@pytest.mark.parametrize("fault", [faulty.slow(3), faulty.trickle], ids=["silent", "trickling"])
def test_a_request_without_end_is_given_up_and_repeated(fault):
    begun = time.monotonic()
    with Faulty(lambda body, before: None if before else fault) as server:
        complete(answers(server, asks(2), timeout=0.3))
    assert time.monotonic() - begun < 2.8 and len(server.requests) == 4


def test_at_most_so_many_at_once_and_no_prompt_taken_early():
    taken = []

    def lazily():
        for ask in asks(60, n=1):
            taken.append(threading.current_thread())
            assert len(taken) - done <= 5
            yield ask

    done = 0
    with Faulty(lambda body, before: faulty.slow(0.01)) as server:
        for _ in engine(server, concurrency=5).generate(lazily(), Sampling(), 0):
            done += 1
    assert done == 60 and server.peak <= 5 and set(taken) == {threading.current_thread()}


def test_more_at_once_while_the_server_bears_it():
    with Faulty(lambda body, before: faulty.slow(0.3)) as server:
        answers(server, asks(150, n=1), concurrency=24)
    assert 16 < server.peak <= 24


def test_so_many_requests_and_tokens_a_minute():
    with Faulty() as server:
        begun = time.monotonic()
        answers(server, asks(14, n=1), rpm=600)  # ten at once, ten a second
        assert 0.35 < time.monotonic() - begun < 5
        begun = time.monotonic()
        answers(server, asks(14, n=1), Sampling(max_tokens=600), tpm=60_000, concurrency=2)
        assert 0.15 < time.monotonic() - begun < 5  # two of 600 expected tokens against 1000 a second; then it learns


def test_finished_answers_do_not_wait_for_the_next_prompt():
    """The prompts come from a stream that only goes on when the first answer is there."""
    seen = []

    def stream():
        yield from asks(1)
        while not seen:
            pytest.fail("the next prompt was asked for before the first answer was given") if late() else None
            time.sleep(0.01)
        yield Ask("k1", [{"role": "user", "content": "question 1"}], 4, "p1")

    deadline = time.monotonic() + 5
    late = lambda: time.monotonic() > deadline
    with Faulty() as server:
        for key, _ in engine(server, concurrency=1).generate(stream(), Sampling(), 0):
            seen.append(key)
    assert seen == ["k0", "k1"]


def test_closing_the_generator_calls_everything_off():
    with Faulty(lambda body, before: None if faulty.prompt_of(body) == "question 0" else faulty.slow(8)) as server:
        running = engine(server).generate(asks(50), Sampling(), 0)
        assert next(running)[0] == "k0"
        begun = time.monotonic()
        running.close()
        assert time.monotonic() - begun < 2
        time.sleep(0.5)  # what was on its way arrives
        count = len(server.requests)
        time.sleep(0.3)
        assert len(server.requests) == count
    assert "requests" not in {t.name for t in threading.enumerate()}


def test_an_error_of_the_prompts_is_raised_where_it_belongs():
    def broken():
        yield from asks(3)
        raise XwinError("line 4 is not JSON")

    with Faulty() as server, pytest.raises(XwinError, match="line 4"):
        list(engine(server).generate(broken(), Sampling(), 0))


def test_a_server_that_stays_greedy_is_told(capsys):
    def same(choices):
        return [{**c, "message": {"content": "the very same words " * 4}} for c in choices]

    with Faulty(lambda body, before: faulty.changed(same)) as server:
        answers(server, asks(9))
        assert capsys.readouterr().err.count("all responses of a prompt are equal") == 1
        answers(server, asks(9), Sampling(temperature=0))
    assert "equal" not in capsys.readouterr().err


# -- through the command line


def write(folder: Path, count: int) -> Path:
    rows = [{"id": f"q{i}", "prompt": [{"role": "user", "content": f"question {i}"}]} for i in range(count)]
    path = folder / "p.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.fixture
def stage(tmp_path):
    """The command line, with this process's environment: it holds the key."""

    def call(*args: object, engine: str = "openai", code: int = 0):
        command = [sys.executable, "-m", "xwincli", "sample", "--engine", engine, *map(str, args)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.returncode == code, done.stderr
        return done

    return call


FAULTS = [
    faulty.status(429, "slow down", retry_after="0.05"),
    faulty.status(429, "slow down"),
    faulty.status(503, f"tired of {KEY}"),
    faulty.status(500),
    faulty.status(408),
    faulty.cut,
    faulty.slow(2),
    faulty.raw('{"choices": [{"index": 0, "mess'),
    faulty.raw("<html>bad gateway</html>", "text/html"),
    faulty.raw('{"choices": []}'),
    faulty.backwards,
    faulty.few,
    faulty.one,
]


@pytest.mark.parametrize("extra", [[], ["--unique"]], ids=["plain", "unique"])
def test_whatever_goes_wrong_every_prompt_is_answered_once(stage, tmp_path, extra):
    rng = random.Random(7)

    def script(body, before):
        return rng.choice(FAULTS) if before < 3 and rng.random() < 0.5 else None

    data = write(tmp_path, 40)
    with Faulty(script) as server:
        options = ["--base-url", server.url, "--data", data, "--n", 4, "--timeout", 1, "--retries", 12, *extra]
        done = stage(*options, "--out", "g.jsonl")
    groups = [json.loads(line) for line in (tmp_path / "g.jsonl").read_text().splitlines()]
    assert [g["prompt"][0]["content"] for g in groups] == [f"question {i}" for i in range(40)]
    for i, g in enumerate(groups):
        assert [r.get("index", 0) for r in g["responses"]] == [0, 1, 2, 3]
        assert all(r["text"].endswith(f" question {i}") for r in g["responses"])
        assert len({r["text"] for r in g["responses"]}) == 4 and g["model"] == "m"
    made = json.loads((tmp_path / "g.jsonl.xwin.json").read_text())
    assert made["counts"] == {"in": 40, "out": 40, "failed": 0}
    assert made["machine"] == {"engine": "openai", "base_url": server.url, "model": "m"}
    everything = done.stdout + done.stderr + "".join(p.read_text() for p in tmp_path.iterdir() if p.is_file())
    assert KEY not in everything and server.keys == {f"Bearer {KEY}"}


def test_what_failed_is_asked_again_by_the_next_run(stage, tmp_path):
    data, broken = write(tmp_path, 8), {"question 3"}
    with Faulty(lambda body, before: faulty.status(500) if faulty.prompt_of(body) in broken else None) as server:
        options = ["--base-url", server.url, "--data", data, "--retries", 0, "--out", "g.jsonl"]
        assert "1 of 8 rows failed" in stage(*options, code=3).stderr
        broken.clear()
        count = len(server.requests)
        stage(*options)
        assert len(server.requests) == count + 1
        assert "up to date" in stage(*options).stderr and len(server.requests) == count + 1
        stage(*options, "--model", "another")  # the server's model is part of what decides
        assert len(server.requests) == count + 9
    assert len((tmp_path / "g.jsonl").read_text().splitlines()) == 8


def test_ctrl_c_ends_at_once_and_keeps_what_there_is(tmp_path):
    data = write(tmp_path, 12)
    with Faulty(lambda body, before: None if faulty.prompt_of(body) == "question 1" else faulty.slow(30)) as server:
        options = ["--engine", "openai", "--base-url", server.url, "--data", str(data), "--out", "g.jsonl"]
        command = [sys.executable, "-m", "xwincli", "sample", *options]
        run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        partial, deadline = tmp_path / "g.jsonl.partial", time.monotonic() + 60
        while not (partial.exists() and partial.read_bytes().count(b"\n") == 2):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        begun = time.monotonic()
        os.kill(run.pid, signal.SIGINT)
        told = run.communicate(timeout=30)[1]
        assert run.returncode == 130 and "goes on where it stopped" in told and "Traceback" not in told
        assert time.monotonic() - begun < 5


def test_the_model_s_name_is_found_where_there_is_one(stage, tmp_path):
    data = write(tmp_path, 1)
    with Faulty(models=("only",)) as server:
        stage("--base-url", server.url, "--data", data, "--out", "g.jsonl", "--template-arg", "brief=true")
    assert server.requests[0]["model"] == "only" and server.requests[0]["chat_template_kwargs"] == {"brief": True}
    assert json.loads((tmp_path / "g.jsonl").read_text())["model"] == "only"
    with Faulty(models=("b", "a")) as server:
        refused = stage("--base-url", server.url, "--data", data, "--out", "h.jsonl", code=1)
    assert "2 models: a, b" in refused.stderr and "--model NAME" in refused.stderr


def test_wrong_addresses_are_usage_errors(stage, tmp_path):
    data = write(tmp_path, 1)
    assert "needs --base-url" in stage("--data", data, code=USAGE).stderr
    assert "begins with http" in stage("--data", data, "--base-url", "localhost:80", code=USAGE).stderr
    told = stage("--data", data, "--base-url", "http://me:secret@host/v1", code=USAGE).stderr
    assert "OPENAI_API_KEY" in told and "secret" not in told
    told = stage("--data", data, "--base-url", "http://h/v1", engine="echo", code=USAGE).stderr
    assert "--base-url means nothing to --engine echo" in told
