"""Variables of compose files: how `.env` sets them, and how a value uses them.

Rules: https://docs.docker.com/reference/compose-file/interpolation/ and
https://docs.docker.com/compose/how-tos/environment-variables/variable-interpolation/.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from blocks.errors import InvalidInput

_DOLLAR = re.compile(r"\$(?:(?P<dollar>\$)|(?P<name>[A-Za-z_]\w*)|(?P<brace>\{))?", re.ASCII)
_BRACE = re.compile(r"\$\{|\}")
_BODY = re.compile(
    r"(?P<name>[A-Za-z_]\w*)(?:(?P<colon>:?)(?P<operator>[-+?])(?P<word>.*))?",
    re.ASCII | re.DOTALL,
)

_ASSIGNMENT = re.compile(
    r"(?:export[ \t]+)?(?P<name>[A-Za-z_][\w.-]*)[ \t]*(?:[=:][ \t]*|(?=\n|\Z))", re.ASCII
)
_SINGLE_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL)
_DOUBLE_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_COMMENT = re.compile(r"(?:^|\s)#.*")
_SKIPPED = re.compile(r"(?:\s+|#[^\n]*)*")
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
# A dollar sign that was escaped shall not begin a variable.
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "'": "'", "\\": "\\", "$": "$$"}


def interpolate(text: str, variables: Mapping[str, str], where: str) -> str:
    """Put variables into a value of a compose file.

    Args:
        text: The value, as in `${REGISTRY:-docker.io}/app:$TAG`.
        variables: What is set.
        where: The value's place, for errors.

    Returns:
        The value with all variables replaced. A default is looked at only where
        it is needed.

    Raises:
        InvalidInput: A variable is malformed, or not set although it is required
            (`${NAME:?why}`) or has no default: compose would warn and go on with
            nothing, which makes another image's name.
    """
    return _Interpolation(variables, where, strict=True).of(text)


def read_environment(
    text: str,
    where: str,
    given: Mapping[str, str] | None = None,
    earlier: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Read the text of an environment file (`.env`).

    Args:
        text: Its lines: `NAME=value`, with or without quotes, comments, `export`.
            A later line may use the variables of earlier ones.
        where: The file, for errors.
        given: What outweighs the file.
        earlier: What earlier files set, which this one may use and change.

    Returns:
        All that is set now.

    Raises:
        InvalidInput: A line is no assignment, or a quote does not end; names the
            line and not its content, which may be a password.
    """
    outweighing = given or {}
    variables = {**(earlier or {}), **outweighing}
    text = text.replace("\r\n", "\n")
    position = _skip(text, 0)
    while position < len(text):
        assignment = _ASSIGNMENT.match(text, position)
        if not assignment:
            raise _bad_line(text, position, where, "sets no variable")
        value, position = _value(text, assignment.end(), variables, where)
        # A bare name takes the value of the shell's variable, of which there is none here.
        is_bare = assignment[0].rstrip(" \t")[-1] not in "=:"
        if not is_bare and assignment["name"] not in outweighing:
            variables[assignment["name"]] = value
        position = _skip(text, position)
    return variables


class _Interpolation:
    """Replaces variables; where it is not strict, what cannot be replaced is nothing."""

    def __init__(self, variables: Mapping[str, str], where: str, *, strict: bool) -> None:
        self._variables = variables
        self._where = where
        self._strict = strict

    def of(self, text: str) -> str:
        parts: list[str] = []
        position = 0
        while match := _DOLLAR.search(text, position):
            parts.append(text[position : match.start()])
            position = match.end()
            if match["brace"]:
                end = _closing(text, position)
                body = _BODY.fullmatch(text, position, end) if end >= 0 else None
                parts.append(self._braced(body) if body else self._malformed(text, match[0]))
                position = end + 1 if body else position
            elif match["name"]:
                parts.append(self._plain(match["name"]))
            else:
                parts.append("$" if match["dollar"] else self._malformed(text, match[0]))
        return "".join(parts) + text[position:]

    def _plain(self, name: str) -> str:
        value = self._variables.get(name)
        if value is None and self._strict:
            raise InvalidInput(
                f"the variable {name} is not set and has no default",
                self._where,
                f"Write {name}=VALUE into the file .env beside the compose file (an empty value "
                "counts too).",
            )
        return value or ""

    def _braced(self, body: re.Match[str]) -> str:
        name, operator, word = body["name"], body["operator"], body["word"]
        value = self._variables.get(name)
        is_set = bool(value) if body["colon"] else value is not None
        match operator:
            case "-":
                return str(value) if is_set else self.of(word)
            case "+":
                return self.of(word) if is_set else ""
            case "?" if not is_set:
                raise self._required(name, self.of(word))
        return self._plain(name)

    def _required(self, name: str, why: str) -> InvalidInput:
        return InvalidInput(
            f"the variable {name} has to be set" + (f" ({why})" if why else ""),
            self._where,
            f"Write {name}=VALUE into the file .env beside the compose file.",
        )

    def _malformed(self, text: str, found: str) -> str:
        """Keep what begins no variable, as a password in an environment file may."""
        if self._strict:
            raise InvalidInput(
                f"{text!r} uses a variable in a way that compose does not know",
                self._where,
                "Write ${NAME}, ${NAME:-default} or ${NAME:?why}; for a dollar sign itself, $$.",
            )
        return found


def _closing(text: str, start: int) -> int:
    """Return where the brace that was opened before `start` is closed, or -1."""
    depth = 1
    for brace in _BRACE.finditer(text, start):
        depth += 1 if brace[0] == "${" else -1
        if depth == 0:
            return brace.start()
    return -1


def _value(text: str, start: int, variables: Mapping[str, str], where: str) -> tuple[str, int]:
    """Return the value that begins there, and where it ends."""
    values = _Interpolation(variables, where, strict=False)
    quote = text[start : start + 1] or "\n"
    if quote not in ("'", '"'):
        line = text[start:].partition("\n")[0]
        return values.of(_COMMENT.sub("", line).strip()), start + len(line)
    quoted = (_SINGLE_QUOTED if quote == "'" else _DOUBLE_QUOTED).match(text, start)
    if not quoted:
        raise _bad_line(text, start, where, f"opens a quote ({quote}) that nothing closes")
    if quote == "'":
        return quoted[1], quoted.end()
    return values.of(_ESCAPE.sub(_unescaped, quoted[1])), quoted.end()


def _unescaped(escape: re.Match[str]) -> str:
    return _ESCAPES.get(escape[1], escape[0])


def _skip(text: str, position: int) -> int:
    """Return where the next line begins that is neither empty nor a comment."""
    skipped = _SKIPPED.match(text, position)
    return skipped.end() if skipped else position


def _bad_line(text: str, position: int, where: str, what: str) -> InvalidInput:
    line = text.count("\n", 0, position) + 1
    return InvalidInput(
        f"line {line} {what}", where, "Write NAME=value on a line of its own, comments after a #."
    )
