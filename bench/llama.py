"""llama.cpp's server as a contender of the sampling benchmark: FILE.gguf JOB; prints one line of JSON.

The server (``pip install xllamacpp``) runs in this process on as many threads as torch would use. Prompts go to it as
token ids, each in requests for as many responses as ``n`` and its slots allow; it keeps a prompt's keys for them.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from sampler import TEMPERATURE


def main() -> None:
    """Run and print."""
    from xllamacpp import CommonParams, Server

    job = json.loads(Path(sys.argv[2]).read_text())
    slots, longest = job["batch"], max(map(len, job["prompts"]))
    params = CommonParams()
    params.model.path = sys.argv[1]
    params.port = 0
    params.n_parallel = slots
    params.n_ctx = slots * (longest + job["most"] + 8)
    params.kv_unified = True
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
    server = Server(params)
    each = min(job["n"], slots)
    bodies = [
        {
            "prompt": prompt, "n_cmpl": each, "n_predict": job["most"], "temperature": TEMPERATURE,
            "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repeat_penalty": 1.0, "seed": i * job["n"] + k,
        }
        for i, prompt in enumerate(job["prompts"])
        for k in range(job["n"] // each)
    ]  # fmt: skip

    def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        url = f"{server.listening_address}/completion"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
        with urllib.request.urlopen(request, timeout=3600) as answer:
            found = json.loads(answer.read())
        return found if isinstance(found, list) else [found]

    ask({**bodies[0], "n_cmpl": 1, "n_predict": 1})
    begun = time.perf_counter()
    with ThreadPoolExecutor(max(slots // each, 1) + 1) as pool:
        answers = [a for some in pool.map(ask, bodies) for a in some]
    seconds = time.perf_counter() - begun
    assert len(answers) == len(job["prompts"]) * job["n"], len(answers)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    tokens = sum(a["tokens_predicted"] for a in answers)
    print(json.dumps({"tokens": tokens, "seconds": seconds, "peak": memory, "responses": len(answers)}), flush=True)
    os._exit(0)  # the server's threads do not end otherwise


if __name__ == "__main__":
    main()
