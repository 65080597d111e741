"""llama.cpp's own server in a process of its own: ``python llama_server.py FILE.gguf PORT`` until stdin closes."""

import os
import sys

from xllamacpp import CommonParams, Server

params = CommonParams()
params.model.path = sys.argv[1]
params.port = int(sys.argv[2])
params.n_parallel = 8
params.n_ctx = 8 * 256
params.kv_unified = True
params.cpuparams.n_threads = 1
server = Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
os._exit(0)  # its threads do not end otherwise
