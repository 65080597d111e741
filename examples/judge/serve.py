"""llama.cpp's server on loopback: python serve.py FILE.gguf PORT, until it is told to end (pip install xllamacpp)."""

import os
import signal
import sys

from xllamacpp import CommonParams, Server

params = CommonParams()
params.model.path = sys.argv[1]
params.port = int(sys.argv[2])
params.n_parallel = 4
params.n_ctx = 4 * 2048
params.kv_unified = True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = os.cpu_count() or 1
server = Server(params)
print(f"serving at {server.listening_address}", flush=True)
signal.sigwait({signal.SIGTERM, signal.SIGINT})
os._exit(0)  # its threads do not end otherwise
