"""Names of models and revisions."""

from __future__ import annotations

import pytest

from blocks.errors import InvalidInput
from tasks.models.hub.names import check_model, check_revision


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-8B", "gpt2", "BAAI/bge-m3", "01-ai/Yi-1.5_x", "a/b", "_x/y--z"]
)
def test_a_name_is_taken_as_it_is(name: str) -> None:
    assert check_model(name) == name


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("https://huggingface.co/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("https://hf-mirror.com/Qwen/Qwen3-8B/tree/main", "Qwen/Qwen3-8B"),
        ("hf-mirror.com/Qwen/Qwen3-8B/resolve/main/config.json?download=true", "Qwen/Qwen3-8B"),
        ("https://www.modelscope.cn/models/Qwen/Qwen3-8B/files", "Qwen/Qwen3-8B"),
        ("https://huggingface.co/openai-community/gpt2.git", "openai-community/gpt2"),
        ("models/Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("Qwen / Qwen3-8B", "Qwen/Qwen3-8B"),
        ("Qwen\\Qwen3-8B", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B/", "Qwen/Qwen3-8B"),
        ("Qwen/Qwen3-8B/config.json", "Qwen/Qwen3-8B"),
        ("https://huggingface.co/gpt2/tree/main", "gpt2"),
    ],
)
def test_what_may_have_been_meant_is_named(text: str, meant: str) -> None:
    with pytest.raises(InvalidInput) as failed:
        check_model(text)
    assert f"Perhaps {meant!r} is meant." in failed.value.remedy


@pytest.mark.parametrize(
    "text", ["", "/", "../..", "a/..", "..", "a/b..c", "-a/b", "a/-b", "模型/一", "a/b.", "a" * 200]
)
def test_a_name_that_would_lead_elsewhere_is_refused_without_a_guess(text: str) -> None:
    with pytest.raises(InvalidInput) as failed:
        check_model(text)
    assert failed.value.remedy == "Write organisation/name, as in Qwen/Qwen3-8B."


@pytest.mark.parametrize(
    "name", ["main", "refs/pr/1", "v1.0", "a" * 40, "release-2024.1/x", "分支"]
)
def test_a_revision_may_be_whatever_git_takes(name: str) -> None:
    assert check_revision(name) == name


@pytest.mark.parametrize(
    "name", ["", "a b", "..", "a..b", "-x", "/main", "main/", "a//b", "a\n", "x@{1}", "a?b", "a:b"]
)
def test_a_revision_that_git_would_not_take_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="no revision"):
        check_revision(name)
