"""Run ``xwin`` as a process of its own, forked from one that has imported torch and transformers once.

Arguments, working folder, standard streams, signals and exit code are a real process's; only the import is shared.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from multiprocessing.process import BaseProcess
from pathlib import Path
from subprocess import CompletedProcess

PRELOAD = [
    "torch",
    "peft",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.auto.modeling_auto",
    "xwincli.stages.sample",
    "xwincli.engines.native",
    "xwincli.train.ppo",
    "xwincli.train.sft",
]
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(PRELOAD)


def start(args: tuple[object, ...], cwd: Path, stdin: Path, stdout: Path, stderr: Path) -> BaseProcess:
    """Begin ``xwin args`` in ``cwd`` with its streams on the given files."""
    argv = [str(a) for a in args]
    process = _server.Process(target=_stage, args=(argv, str(cwd), str(stdin), str(stdout), str(stderr)), daemon=True)
    process.start()
    return process


def run(args: tuple[object, ...], cwd: Path, stdin: str | None = None, timeout: float = 250) -> CompletedProcess[str]:
    """Run ``xwin args`` to its end."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
        files[0].write_text(stdin or "", newline="")
        process = start(args, cwd, *files)
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
        out, err = (f.read_text() for f in files[1:])
        assert process.exitcode is not None
        return CompletedProcess(["xwin", *map(str, args)], process.exitcode, out, err)


def _stage(argv: list[str], cwd: str, stdin: str, stdout: str, stderr: str) -> None:
    """In the forked child: take the streams, then what the console script does."""
    for number, path, flags in (
        (0, stdin, os.O_RDONLY),
        (1, stdout, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
        (2, stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    ):
        os.dup2(os.open(path, flags), number)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # the fork server ignores it
    sys.argv = ["xwin", *argv]
    from xwincli.cli import main

    main()
