"""What a model folder holds, read off its JSON files and safetensors headers: no weights, no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from xwincli.errors import XwinError

Facts = dict[str, Any]
HEADER = 100 << 20  # bytes; a longer safetensors header is damage


def inspect(name: str) -> tuple[Facts, list[str]]:
    """The facts of a model folder and what is wrong with it.

    Returns:
        kind (policy, reward or adapter), architecture, parameters, bytes, dtypes, shape, template, stop
        tokens, pad token; and one sentence for each problem.

    Raises:
        XwinError: there is no model folder of this name, or its config cannot be read.
    """
    folder = Path(name)
    if folder.suffix == ".gguf" and folder.is_file():
        raise XwinError(f"{name}: a GGUF file", f"make a folder of it: xwin convert --model {name} --out DIR")
    if not folder.is_dir():
        raise XwinError(f"{name}: no such model folder")
    problems: list[str] = []
    if (folder / "adapter_config.json").is_file():
        return _adapter(folder, problems), problems
    config = _json(folder / "config.json")
    if config is None:
        raise XwinError(f"{folder / 'config.json'}: is missing, so this is no model folder")
    architecture = (config.get("architectures") or ["unknown"])[0]
    is_reward = architecture.endswith("ForSequenceClassification")
    tensors = _tensors(folder, "model", problems)
    facts: Facts = {
        "kind": "reward" if is_reward else "policy",
        "architecture": architecture,
        **_counts(tensors),
        "layers": config.get("num_hidden_layers"),
        "hidden": config.get("hidden_size"),
        "vocabulary": config.get("vocab_size"),
        **_words(folder, config, problems),
    }
    if is_reward:
        _check_reward(folder, config, facts, tensors, problems)
    return facts, problems


def _json(path: Path) -> Facts | None:
    """A JSON object of the folder; None where the file is missing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except OSError as e:
        raise XwinError(f"{path}: cannot read: {e.strerror}") from None
    except ValueError as e:
        raise XwinError(f"{path}: not valid JSON: {e}") from None
    if not isinstance(value, dict):
        raise XwinError(f"{path}: expected one JSON object")
    return value


def _tensors(folder: Path, stem: str, problems: list[str]) -> dict[str, Facts]:
    """Name to dtype and shape of every tensor, from one file or from the shards of an index."""
    index = _json(folder / f"{stem}.safetensors.index.json")
    files = sorted(set(index.get("weight_map", {}).values())) if index else [f"{stem}.safetensors"]
    found: dict[str, Facts] = {}
    for file in files:
        if not (folder / file).is_file():
            others = [p.name for p in folder.glob("*.bin")]
            hint = f" (only {others[0]}, which is not read)" if others else ""
            problems.append(f"{folder / file}: is missing{hint}")
            continue
        try:
            found |= header(folder / file)
        except XwinError as e:
            problems.append(e.message)
    if index:
        lost = sorted(set(index["weight_map"]) - set(found))
        if lost and not problems:
            problems.append(f"{folder}: {len(lost)} tensors of the index are in no shard, such as {lost[0]}")
    return found


def header(path: Path) -> dict[str, Facts]:
    """The tensors a safetensors file declares; XwinError where the file is cut off or no safetensors."""
    size = path.stat().st_size
    with path.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if not 2 <= length <= min(HEADER, size - 8):
            raise XwinError(f"{path}: is no safetensors file, or is cut off")
        try:
            tensors = json.loads(f.read(length))
        except ValueError:
            raise XwinError(f"{path}: its safetensors header is damaged") from None
    tensors.pop("__metadata__", None)
    end = max((t["data_offsets"][1] for t in tensors.values()), default=0)
    if 8 + length + end != size:
        raise XwinError(f"{path}: has {size} bytes where its header asks for {8 + length + end}")
    return dict(tensors)


def _counts(tensors: dict[str, Facts]) -> Facts:
    dtypes: dict[str, int] = {}
    total = 0
    for t in tensors.values():
        count = 1
        for n in t["shape"]:
            count *= n
        dtypes[t["dtype"]] = dtypes.get(t["dtype"], 0) + count
        total += t["data_offsets"][1] - t["data_offsets"][0]
    return {"parameters": sum(dtypes.values()), "bytes": total, "dtypes": dtypes}


def _words(folder: Path, config: Facts, problems: list[str]) -> Facts:
    """Template, stop tokens and pad token, by name."""
    tokens = _json(folder / "tokenizer_config.json")
    words = _json(folder / "tokenizer.json")
    if tokens is None or words is None:
        missing = "tokenizer.json" if words is None else "tokenizer_config.json"
        problems.append(f"{folder / missing}: is missing, so nothing can be tokenized")
    tokens, words = tokens or {}, words or {}
    named = {t["id"]: t["content"] for t in words.get("added_tokens", [])}
    generation = _json(folder / "generation_config.json") or {}
    stops = generation.get("eos_token_id", config.get("eos_token_id"))
    stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
    if not stops:
        problems.append(f"{folder}: no eos_token_id, so no response would end by itself")
    has_template = bool(tokens.get("chat_template")) or (folder / "chat_template.jinja").is_file()
    largest = max([*named, len(words.get("model", {}).get("vocab", ())) - 1])
    if config.get("vocab_size") is not None and largest >= config["vocab_size"]:
        text = f"the tokenizer's id {largest} is beyond the model's vocabulary of {config['vocab_size']}"
        problems.append(f"{folder}: {text}")
    pad = config.get("pad_token_id", generation.get("pad_token_id"))
    return {
        "template": has_template,
        "stop_tokens": {str(i): named.get(i, "") for i in stops},
        "pad_token": None if pad is None else {str(pad): named.get(pad, "")},
    }


def _check_reward(folder: Path, config: Facts, facts: Facts, tensors: dict[str, Facts], problems: list[str]) -> None:
    """What makes loaders read different scores off one reward model."""
    pad, eos = config.get("pad_token_id"), config.get("eos_token_id")
    if pad is None:
        problems.append(f"{folder}: field pad_token_id: is missing; a batch cannot be scored")
    elif pad in (eos if isinstance(eos, list) else [eos]):
        problems.append(f"{folder}: field pad_token_id: equals eos, so the score is read one token early")
    labels = len(config.get("id2label") or {0: "", 1: ""})
    if labels != 1:
        problems.append(f"{folder}: field id2label: has {labels} labels; a reward model has one")
    head = tensors.get("score.weight")
    if tensors and head is None:
        problems.append(f"{folder}: there is no score.weight")
    elif head is not None and head["shape"][0] != 1:
        problems.append(f"{folder}: score.weight is {head['shape']}; a reward model's has one row")
    if not facts["template"]:
        problems.append(f"{folder}: no chat template, so conversations cannot be scored")


def _adapter(folder: Path, problems: list[str]) -> Facts:
    config = _json(folder / "adapter_config.json") or {}
    tensors = _tensors(folder, "adapter_model", problems)
    base = config.get("base_model_name_or_path")
    return {"kind": "adapter", "architecture": config.get("peft_type"), "base": base, **_counts(tensors)}
