"""Engines: prompts in, responses out. One file each, found by name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import msgspec

from xwincli.errors import USAGE, XwinError
from xwincli.records import Message, Response
from xwincli.settings import Device, Sampling, Server

NAMES = ("native", "vllm", "openai", "echo")


class Ask(msgspec.Struct, frozen=True):
    """A wish for responses to one prompt.

    Attributes:
        key: comes back with the responses.
        messages: the prompt.
        n: how many responses.
        first: the first one's index: a response's text depends on (seed, prompt_id, index) alone.
        prompt_id: of the prompt.
    """

    key: str
    messages: list[Message]
    n: int
    prompt_id: str
    first: int = 0


class Engine(Protocol):
    """What every engine does."""

    def generate(
        self, asks: Iterable[Ask], sampling: Sampling, seed: int
    ) -> Iterator[tuple[str, list[Response] | XwinError]]:
        """Answer every ask: (key, its responses by index) as each is complete, in any order.

        An ask that cannot be answered (a prompt beyond the context) gives an error in place of responses.
        """
        ...

    def facts(self) -> dict[str, str]:
        """Device, precision: for the manifest."""
        ...


def find(
    name: str,
    model: str,
    device: Device,
    rows: int,
    *,
    tokens: int = 0,
    server: Server | None = None,
    template_arguments: dict[str, Any] | None = None,
) -> Engine:
    """An engine by name.

    Args:
        name: one of ``NAMES``.
        model: folder, hub name, adapter or .gguf; with ``openai`` the server's name for it; ``echo`` needs none.
        device: where ``native`` computes.
        rows: responses ``native`` decodes together.
        tokens: whose keys and values ``native`` holds at most; 0 is no limit.
        server: whom ``openai`` asks.
        template_arguments: variables for the server's chat template (``native`` has its own template told).
    """
    if name == "openai":
        from xwincli.engines.openai import OpenAI

        return OpenAI(server or Server(), model, template_arguments)
    if server and server.base_url:
        raise XwinError(f"--base-url means nothing to --engine {name}", "--engine openai asks a server", USAGE)
    if name == "echo":
        from xwincli.engines.echo import Echo

        return Echo()
    if not model:
        raise XwinError("--model is required", "the policy that answers: folder, hub name, adapter or .gguf")
    if name == "vllm":
        from xwincli.engines.vllm import Vllm

        return Vllm(model, device, rows)
    from xwincli import models
    from xwincli.engines.native import Native

    return Native(models.load_policy(model, models.place(device)), rows, tokens, own=True)
