"""Names of models and of their revisions, as a hub knows them."""

from __future__ import annotations

import re

from blocks.errors import InvalidInput

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?"
_MODEL = re.compile(rf"{_PART}(?:/{_PART})?", re.ASCII)
# What git allows nowhere in the name of a branch or a tag (git-check-ref-format).
_NO_REVISION = re.compile(
    r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|//|@\{|^[-/.]|[/.]$|^$|^.{256}", re.DOTALL
)
_PAGES = ("tree", "blob", "resolve", "raw", "summary", "files", "discussions", "commits")


def check_model(model: str) -> str:
    """Return the name of a model if it is one.

    Args:
        model: `organisation/name`, or one of the old names without an organisation.

    Raises:
        InvalidInput: It is none; what may have been meant is named.
    """
    if _MODEL.fullmatch(model) and ".." not in model:
        return model
    meant = _meant(model)
    raise InvalidInput(
        "it is no name of a model on a hub",
        f"model {model[:200]!r}",
        "Write organisation/name, as in Qwen/Qwen3-8B."
        + (f" Perhaps {meant!r} is meant." if meant else ""),
    )


def _meant(text: str) -> str:
    """Find the name in the address of a page, or in a name with too much around it."""
    bare = re.sub(r"\s+", "", text).replace("\\", "/").strip("/'\"@")
    bare = re.split("[?#]", bare)[0]
    with_host = "://" in bare or re.match(r"[\w-]+(\.[\w-]+)+(:\d+)?/.+/", bare)
    if with_host:
        bare = bare.partition("://")[2] or bare
        bare = bare.partition("/")[2]
    parts = [part for part in bare.split("/") if part]
    if parts and parts[0] in ("models", "api"):
        parts = [part for part in parts if part not in ("models", "api", "v1")]
    for at, part in enumerate(parts):
        if at and part in _PAGES:
            parts = parts[:at]
            break
    name = "/".join(parts[:2]).removesuffix(".git")
    return name if _MODEL.fullmatch(name) and name != text and ".." not in name else ""


def check_revision(revision: str) -> str:
    """Return the name of a revision if it can be one.

    Args:
        revision: A branch, a tag or a commit.

    Raises:
        InvalidInput: It can be none.
    """
    if _NO_REVISION.search(revision):
        raise InvalidInput(
            "it can be no revision of a model",
            f"revision {revision[:200]!r}",
            "Write a branch, a tag or a commit; main is what most models have.",
        )
    return revision
