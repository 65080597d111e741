"""The only exception a user sees: one sentence, a remedy, an exit code."""

from __future__ import annotations

USER_ERROR = 1
USAGE = 2
FAILED_ROWS = 3
LIMIT = 4
INTERRUPTED = 130
PIPE_CLOSED = 141


class XwinError(Exception):
    """A problem the user can mend.

    Args:
        message: what is wrong, with the file, line, field and value that show it.
        hint: what to do about it; may be empty.
        code: the process's exit code, one of the constants of this file.
    """

    def __init__(self, message: str, hint: str = "", code: int = USER_ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.code = code
