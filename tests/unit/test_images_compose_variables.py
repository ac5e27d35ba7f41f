"""Variables of compose files: what .env sets, and what values make of it."""

from __future__ import annotations

import pytest

from blocks.errors import InvalidInput
from tasks.images.compose.variables import interpolate, read_environment

SET = {"TAG": "v1", "EMPTY": "", "OTHER": "x"}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("app:1", "app:1"),
        ("app:$TAG", "app:v1"),
        ("app:${TAG}", "app:v1"),
        ("$TAG/$OTHER.$TAG", "v1/x.v1"),
        ("${TAG:-v9}", "v1"),
        ("${EMPTY:-v9}", "v9"),
        ("${EMPTY-v9}", ""),
        ("${UNSET-v9}", "v9"),
        ("${UNSET:-}", ""),
        ("${UNSET:-registry:5000/a-b}", "registry:5000/a-b"),
        ("${UNSET:-${ALSO_UNSET:-${TAG}}}", "v1"),
        ("${UNSET:-a${TAG}b}c", "av1bc"),
        ("${TAG:?why}", "v1"),
        ("${EMPTY?why}", ""),
        ("${TAG:+set}", "set"),
        ("${EMPTY:+set}", ""),
        ("${EMPTY+set}", "set"),
        ("${UNSET+set}", ""),
        ("${TAG:-${UNSET}}", "v1"),
        ("$$TAG", "$TAG"),
        ("$${TAG}", "${TAG}"),
        ("a$$$TAG", "a$v1"),
        ("${TAG}}", "v1}"),
    ],
)
def test_variables_are_replaced_as_compose_does(text: str, value: str) -> None:
    assert interpolate(text, SET, "here") == value


@pytest.mark.parametrize("text", ["$UNSET", "${UNSET}", "${EMPTY:-$UNSET}", "${TAG:+${UNSET}}"])
def test_a_variable_that_nothing_sets_is_named_and_belongs_into_env(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^here: the variable UNSET .*into .*\.env"):
        interpolate(text, SET, "here")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("${UNSET:?bring a tag for $OTHER}", r"UNSET has to be set \(bring a tag for x\)"),
        ("${EMPTY:?}", "EMPTY has to be set[.]"),
    ],
)
def test_a_required_variable_says_why(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        interpolate(text, SET, "here")


@pytest.mark.parametrize(
    "text", ["app:$", "${", "${}", "${TAG", "${1A}", "${TAG!x}", "$1", "${-a}"]
)
def test_what_compose_does_not_know_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="does not know") as failed:
        interpolate(text, SET, "here")
    assert repr(text) in str(failed.value)


@pytest.mark.parametrize(
    ("text", "variables"),
    [
        ("", {}),
        ("A=1\nB=2", {"A": "1", "B": "2"}),
        ("A=1\r\nB=2\r\n", {"A": "1", "B": "2"}),
        ("# 镜像 # A=2\n\n  \nA=1 # 版本\n", {"A": "1"}),
        ("A=a#b\nB= # nothing\nC=#d", {"A": "a#b", "B": "", "C": ""}),
        ("export A=1\nexport  B = 2 ", {"A": "1", "B": "2"}),
        ("A: 1", {"A": "1"}),
        ("A='x $B # y' # z\nB=1", {"A": "x $B # y", "B": "1"}),
        ('A="x # y"\nB="two\nlines"\nC=1', {"A": "x # y", "B": "two\nlines", "C": "1"}),
        (r'A="q\"q\n\$B\\"', {"A": 'q"q\n$B\\'}),
        ('A=1\nB=${A}2\nC="$B"\n', {"A": "1", "B": "12", "C": "12"}),
        ("B=${A:-none}$X", {"B": "none"}),
        ("PASSWORD=pa$$ss$", {"PASSWORD": "pa$ss$"}),
        ("A=1\nA=2", {"A": "2"}),
        ("A\nB=1\nexport C", {"B": "1"}),
        ("A=中文", {"A": "中文"}),
        ("dotted.name-x=1", {"dotted.name-x": "1"}),
    ],
)
def test_an_environment_file_is_read_as_compose_does(text: str, variables: dict[str, str]) -> None:
    found = read_environment(text, ".env")
    assert found == variables


def test_what_is_given_outweighs_the_file_and_may_be_used_there() -> None:
    given = {"A": "outer"}
    assert read_environment("A=inner\nB=$A", ".env", given) == {"A": "outer", "B": "outer"}
    assert given == {"A": "outer"}


def test_a_later_file_may_use_and_change_what_an_earlier_one_set() -> None:
    found = read_environment("A=2\nC=$A$B", ".env", {"G": "g"}, {"A": "1", "B": "b", "G": "x"})
    assert found == {"A": "2", "B": "b", "C": "2b", "G": "g"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("A=1\n\nsecret word=2", "line 3 sets no variable"),
        ("A='secret\nB=1", "line 1 opens a quote"),
        ('A=1\nB="secret', "line 2 opens a quote"),
        ("=secret", "line 1 sets no variable"),
    ],
)
def test_a_line_that_is_no_assignment_is_named_without_what_it_says(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as failed:
        read_environment(text, "/srv/.env")
    assert "secret" not in str(failed.value)
    assert str(failed.value).startswith("/srv/.env: ")
