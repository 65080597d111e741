"""Evaluate responses by what a program can verify: the share of prompts and of demands that are met.

    xwin eval verifiable --data groups.jsonl --out eval
    xwin eval verifiable --data responses.jsonl --prompts input_data.jsonl --out ifeval

Demands are the prompts' `checks`, IFEval's `instruction_id_list` with `kwargs`, and with `--answers` their reference.
They travel with the groups, or stand in `--prompts`, which responses are joined to by the prompt's exact text; IFEval's
files of prompts and of responses are read as they are. `--out` gets `eval.json` and `results.jsonl`, a row a response.
Reported are prompt-level and instruction-level accuracy, strict and loose (IFEval's: without the first or last line
or asterisks), pass@k (one of k passes) and pass^k (all k pass), with 95 % intervals over prompts. Prompts without a
response are listed, and the exit code is 3.

A check is `{"kind": …, "value": …}`. Kinds are exact; regex (found anywhere); numeric (the answer's last number, within
`tolerance`); json_schema (needs jsonschema); those that judges know: max_words, min_words, bullets, mentions, avoids,
lower_case, no_commas, one_sentence, ends_with, starts_with, sentences, has_number; and IFEval's, with their arguments
as the value: keywords:existence, keywords:frequency, keywords:forbidden_words, keywords:letter_frequency,
length_constraints:number_paragraphs, length_constraints:number_words, length_constraints:nth_paragraph_first_word,
detectable_content:number_placeholders, detectable_content:postscript, detectable_format:number_bullet_lists,
detectable_format:constrained_response, detectable_format:number_highlighted_sections,
detectable_format:multiple_sections, detectable_format:json_format, detectable_format:title,
combination:two_responses, combination:repeat_prompt, startend:end_checker, startend:quotation, punctuation:no_comma;
with langdetect installed language:response_language, change_case:english_capital, change_case:english_lowercase; with
nltk length_constraints:number_sentences, change_case:capital_word_frequency.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from xwincli import settings
from xwincli.console import say, table
from xwincli.records import Group, Prompt
from xwincli.settings import flag


@dataclass(kw_only=True)
class Config:
    """Options of ``xwin eval verifiable``."""

    data: list[str] = flag(["-"], "groups or IFEval's responses: files, globs, hf:NAME, or -; repeatable")
    prompts: list[str] = flag([], "prompts that make the demands, where the groups carry none; repeatable")
    out: str = flag(help="folder for eval.json and results.jsonl")
    answers: str = flag("none", "hold responses to the prompt's reference too", choices=("none", "exact", "numeric"))
    rounds: int = flag(2000, "bootstrap resamples", low=100)
    seed: int = flag(0, "of the bootstrap")
    force: bool = flag(False, "make it anew even if it is up to date", execution=True)
    thinking: settings.Thinking = settings.group(settings.Thinking)


def run(config: Config) -> None:
    """Read, verify, count, write; the manifest comes last."""
    from xwincli.protocols import evaluation, verifiable

    started = time.time()
    plan = evaluation.begin("eval verifiable", config, [*config.data, *config.prompts])
    if plan is None:
        return
    groups = list(evaluation.records(evaluation.rows(config.data), Group, verifiable.response_row))
    prompts = list(evaluation.records(evaluation.rows(config.prompts), Prompt)) if config.prompts else None
    if config.thinking.split_thinking:
        from xwincli.chat import set_thinking_aside

        for _, group in groups:
            set_thinking_aside(group.responses)
    answers = "" if config.answers == "none" else config.answers
    tasks, missing = verifiable.join(groups, prompts, answers)
    outcomes = [verifiable.hold(task) for task in tasks]
    figures = verifiable.figures(outcomes, config.rounds, config.seed)
    total = len(tasks) + len(missing)
    facts: dict[str, Any] = {
        "protocol": "verifiable",
        "prompts": total,
        "answered": len(tasks),
        "responses": sum(len(t.responses) for t in tasks),
        "coverage": len(tasks) / total,
        "missing": missing,
        **figures,
        "rounds": config.rounds,
        "seed": config.seed,
    }
    say(_summary(facts))
    counts = {"total": total, "missing": len(missing), "responses": facts["responses"]}
    metrics = {level: figures[level]["strict"]["value"] for level in ("prompt_level", "instruction_level")}
    rows = verifiable.result_rows(outcomes)
    evaluation.finish(plan, config, facts, rows, started=started, counts=counts, metrics=metrics)


def _summary(facts: dict[str, Any]) -> str:
    """The accuracies, the kinds, pass@k and pass^k as a table."""
    from xwincli.protocols.evaluation import bounds

    rows = []
    for level in ("prompt_level", "instruction_level"):
        rows += [[f"{level.replace('_', ' ')}, {way}", *bounds(facts[level][way])] for way in ("strict", "loose")]
    for name, sign in (("pass_at_k", "@"), ("pass_hat_k", "^")):
        rows += [[f"pass{sign}{point['k']}", *bounds(point)] for point in facts[name] if facts["n"] > 1]
    rows += [[f"  {kind} ({f['n']})", *bounds(f["strict"])] for kind, f in facts["by_kind"].items()]
    head = f"{facts['responses']} responses to {facts['answered']} of {facts['prompts']} prompts"
    return table([head, "share", "95 %"], rows)
