"""The table of stages in pipeline order, the error boundary, and the exit codes."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import redirect_stdout
from importlib import import_module

from xwincli import __version__
from xwincli.errors import INTERRUPTED, PIPE_CLOSED, USAGE, XwinError

# command -> (module, one line); imported only when named
STAGES: dict[str, tuple[str, str]] = {
    "sft": ("xwincli.stages.sft", "conversations -> policy folder (supervised finetuning)"),
    "sample": ("xwincli.stages.sample", "prompts + policy -> groups of n responses"),
    "merge": ("xwincli.stages.merge", "shards of one run -> the file of one process"),
    "judge": ("xwincli.stages.judge", "groups -> pairwise judgements, both orders"),
    "train-rm": ("xwincli.stages.train_rm", "judgements or pairs -> reward model folder"),
    "score": ("xwincli.stages.score", "groups + reward model -> the same groups with scores"),
    "rs-filter": ("xwincli.stages.rs_filter", "scored groups -> SFT conversations or DPO pairs"),
    "dpo": ("xwincli.stages.dpo", "pairs + policy -> policy (direct preference optimisation)"),
    "ppo": ("xwincli.stages.ppo", "prompts + policy + reward model -> policy"),
    "eval compare": ("xwincli.stages.eval_compare", "files of groups -> judgements, win rates, best-of-n, eval.json"),
    "eval alpaca": ("xwincli.stages.eval_alpaca", "annotations or outputs -> AlpacaEval 2, win rate at equal lengths"),
    "eval mt-bench": ("xwincli.stages.eval_mt_bench", "questions + policy + judge, or judgements -> MT-Bench tables"),
    "eval gate": (
        "xwincli.stages.eval_gate",
        "suite + answers or policy + baseline -> is it worse? JUnit, exit code 4",
    ),
    "eval arena": ("xwincli.stages.eval_arena", "battles -> Bradley-Terry strengths, win rates, style control"),
    "eval stability": ("xwincli.stages.eval_stability", "scored groups -> level, spread, worst, best; what changed"),
    "eval grounding": ("xwincli.stages.eval_grounding", "groups with contexts -> unsupported claims; ablation prompts"),
    "eval errors": ("xwincli.stages.eval_errors", "files of groups -> error tags, clusters of failures, their lift"),
    "eval rm": ("xwincli.stages.eval_rm", "reward model + RewardBench, pairs or samples -> accuracy, rm@k, maj@k"),
    "eval bon": ("xwincli.stages.eval_bon", "groups with scores and gold -> best-of-n curves, over-optimisation"),
    "eval verifiable": (
        "xwincli.stages.eval_verifiable",
        "groups + checks or IFEval -> strict and loose accuracy, pass@k",
    ),
    "audit rm": ("xwincli.stages.audit_rm", "reward model + preferences -> accuracy beside a ruler, calibration"),
    "audit judge": ("xwincli.stages.audit_judge", "judgements + labels -> flips, biases, agreement, flagged answers"),
    "report": ("xwincli.stages.report", "manifests and records -> one self-contained HTML page"),
    "check": ("xwincli.stages.check", "what is this file or model, and is anything wrong with it?"),
    "convert": ("xwincli.stages.convert", "any known format -> canonical records; a .gguf -> a model folder"),
}


def usage() -> str:
    """The root page: every stage on one line, in pipeline order."""
    width = max(map(len, STAGES)) + 2
    lines = [f"  {name:<{width}}{text}" for name, (_, text) in STAGES.items()]
    return "\n".join(
        [
            "Usage: xwin STAGE [OPTIONS]",
            "",
            "The Xwin-LM alignment recipe as composable stages. Each reads and writes JSONL or",
            "model folders; `-` is standard input or output.",
            "",
            "Stages, in pipeline order:",
            *lines,
            "",
            "xwin STAGE --help tells a stage's options; xwin --version the version.",
        ]
    )


def _find(argv: list[str]) -> tuple[str, list[str]]:
    """Split ``argv`` into a command of the table and the rest; exits 2 where there is none."""
    for words in (2, 1):
        if (name := " ".join(argv[:words])) in STAGES:
            return name, argv[words:]
    family = [name for name in STAGES if name.startswith(f"{argv[0]} ")]
    if family:
        if argv[1:2] in (["--help"], ["-h"]):
            print("\n".join(f"  xwin {name:<16}{STAGES[name][1]}" for name in family))
            raise SystemExit(0)
        print(f"error: xwin {argv[0]} needs one of: {', '.join(n.split()[1] for n in family)}", file=sys.stderr)
    else:
        import difflib

        near = difflib.get_close_matches(argv[0], STAGES, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        print(f"error: no stage {argv[0]!r}{meant}\n  hint: xwin --help lists them", file=sys.stderr)
    raise SystemExit(USAGE)


def main(argv: list[str] | None = None) -> None:
    """Run one stage; turn what the user can mend into one sentence and an exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("--help", "-h"):
        print(usage())
        return
    if argv[0] == "--version":
        print(f"xwincli {__version__}")
        return
    name, rest = _find(argv)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))  # a scheduler's stop is a Ctrl-C
    try:
        from xwincli.flags import command

        module = import_module(STAGES[name][0])
        config = command(name, module.Config, module.__doc__ or "")(rest)
        if config is not None:
            with redirect_stdout(sys.stderr):  # what a library prints is for people
                module.run(config)
        sys.stdout.flush()
    except XwinError as e:
        print(f"error: {e.message}", file=sys.stderr)
        if e.hint:
            print(f"  hint: {e.hint}", file=sys.stderr)
        raise SystemExit(e.code) from None
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on where it stopped", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(PIPE_CLOSED) from None
