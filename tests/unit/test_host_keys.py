"""Host keys: recorded, shown, compared."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

import paramiko
import pytest
from paramiko.hostkeys import HostKeys

from blocks.errors import ChangedHostKey, InvalidInput, UnknownHostKey
from blocks.host_keys import (
    KnownHosts,
    fingerprint,
    host_key_name,
    known_hosts_line,
    recorded_anew,
)

ADDRESS = "10.0.3.17"


@cache
def key(number: int = 0) -> paramiko.PKey:
    """Make a key once per number."""
    assert number >= 0
    return paramiko.ECDSAKey.generate(bits=256)


@cache
def rsa() -> paramiko.PKey:
    return paramiko.RSAKey.generate(2048)


def known(*lines: str) -> KnownHosts:
    return KnownHosts("\n".join(lines), "gpu1 (10.0.3.17)")


def line(shown: paramiko.PKey, names: str = ADDRESS) -> str:
    return f"{names} {shown.get_name()} {shown.get_base64()}"


def test_only_an_odd_port_is_part_of_the_name() -> None:
    assert host_key_name(ADDRESS, 22) == ADDRESS
    assert host_key_name(ADDRESS, 2222) == f"[{ADDRESS}]:2222"
    assert host_key_name("fd00::1", 2222) == "[fd00::1]:2222"


@pytest.mark.parametrize("make", [key, rsa])
def test_a_fingerprint_is_the_one_that_ssh_keygen_prints(make, tmp_path: Path) -> None:
    (tmp_path / "key.pub").write_text(f"{make().get_name()} {make().get_base64()}\n")

    said = subprocess.run(
        ["ssh-keygen", "-lf", tmp_path / "key.pub"], capture_output=True, text=True, check=True
    ).stdout

    assert fingerprint(make()) == said.split()[1]


@pytest.mark.parametrize("port", [22, 2222])
@pytest.mark.parametrize("make", [key, rsa])
def test_a_line_that_is_recorded_is_known_again_and_by_openssh(
    make, port: int, tmp_path: Path
) -> None:
    recorded = known_hosts_line(ADDRESS, port, make())
    (tmp_path / "known_hosts").write_text(f"{recorded}\n")

    known(recorded).check(ADDRESS, port, make())
    found = subprocess.run(
        ["ssh-keygen", "-F", host_key_name(ADDRESS, port), "-f", tmp_path / "known_hosts"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert recorded in found


@pytest.mark.parametrize(
    "text",
    [
        f"# gpu1\n\n  \t\n{line(key())}\n",
        f"{line(key())}\r\n",
        f"  {line(key())} root@gpu1  ",
        f"{ADDRESS}\t{key().get_name()}\t{key().get_base64()}",
        line(key(), f"gpu1,{ADDRESS},gpu1.lan"),
        line(key(), HostKeys.hash_host(ADDRESS)),
        f"{line(key(1), 'other')}\n{line(key())}",
        f"{line(rsa())}\n{line(key())}",
    ],
    ids=["comments", "crlf", "blanks", "tabs", "names", "hashed", "others", "types"],
)
def test_records_are_read_in_every_form_that_openssh_writes(text: str) -> None:
    known(text).check(ADDRESS, 22, key())


def test_records_that_openssh_hashed_are_read(tmp_path: Path) -> None:
    path = tmp_path / "known_hosts"
    path.write_text(f"{known_hosts_line(ADDRESS, 2222, key())}\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", path], capture_output=True, check=True)
    hashed = path.read_text()
    assert ADDRESS not in hashed

    known(hashed).check(ADDRESS, 2222, key())
    with pytest.raises(UnknownHostKey):
        known(hashed).check(ADDRESS, 22, key())


@pytest.mark.parametrize("shown", [key(0), key(1)], ids=["first", "second"])
def test_any_of_several_recorded_keys_of_one_type_is_right(shown: paramiko.PKey) -> None:
    known(line(key(0)), line(key(1))).check(ADDRESS, 22, shown)


def test_a_host_without_a_record_is_unknown_and_shows_its_fingerprint() -> None:
    with pytest.raises(UnknownHostKey) as refused:
        known(line(key(), "10.0.3.18")).check(ADDRESS, 2222, key())

    assert refused.value.where == "gpu1 (10.0.3.17)"
    assert f"{key().get_name()} {fingerprint(key())}" in refused.value.what
    assert f"blocks.ssh_host scan {ADDRESS} --port 2222 --block" in refused.value.remedy
    assert not refused.value.retryable


def test_another_ports_record_does_not_count() -> None:
    with pytest.raises(UnknownHostKey):
        known(known_hosts_line(ADDRESS, 22, key())).check(ADDRESS, 2222, key())


@pytest.mark.parametrize("shown", [key(2), rsa()], ids=["same type", "other type"])
def test_another_key_than_the_recorded_one_has_changed(shown: paramiko.PKey) -> None:
    with pytest.raises(ChangedHostKey) as refused:
        known(line(key())).check(ADDRESS, 22, shown)

    assert f"recorded is {key().get_name()} {fingerprint(key())}" in refused.value.what
    assert f"shown is {shown.get_name()} {fingerprint(shown)}" in refused.value.what
    assert not refused.value.retryable


@pytest.mark.parametrize(
    "bad",
    [
        "nonsense",
        f"{ADDRESS} ssh-ed25519",
        f"{ADDRESS} ssh-ed25519 !!!not-base64!!!",
        f"{ADDRESS} ssh-ed25519 {key().get_base64()[:-8]}",
        f"{ADDRESS} no-such-algorithm AAAA",
        f"{key().get_name()} {key().get_base64()}",
        "@revoked",
        line(key(), "|1|c2FsdA==|!!!"),
        line(key(), "|1|c2FsdA=="),
        f"@cert-authority {line(key(), '*.lan')}",
        f"SHA256:abc {ADDRESS}",
    ],
)
def test_a_line_that_is_no_record_is_named_by_its_number(bad: str) -> None:
    with pytest.raises(InvalidInput, match="line 3 of known_hosts") as refused:
        known(f"# first\n{line(key(1))}\n{bad}")

    assert "scan" in refused.value.remedy


def test_a_host_is_asked_for_the_kinds_of_key_that_are_recorded() -> None:
    records = known(line(rsa()), line(key()), line(key(), "other"))

    assert records.algorithms(ADDRESS, 22) == ["rsa-sha2-512", "rsa-sha2-256", key().get_name()]
    assert records.algorithms("other", 22) == [key().get_name()]
    assert records.algorithms("unknown", 22) == []


def test_nothing_recorded_is_nothing_known() -> None:
    assert known("").keys(ADDRESS, 22) == []


@pytest.mark.parametrize(
    ("names", "port"),
    [
        ("*", 22),
        ("10.0.3.*", 22),
        ("10.0.3.1?", 22),
        ("*,!10.0.3.18", 22),
        (f"[{ADDRESS}]:2222", 2222),
        ("[10.0.3.*]:2222", 2222),
    ],
)
def test_patterns_stand_for_hosts_as_openssh_reads_them(
    names: str, port: int, tmp_path: Path
) -> None:
    (tmp_path / "known_hosts").write_text(f"{line(key(), names)}\n")
    subprocess.run(
        ["ssh-keygen", "-F", host_key_name(ADDRESS, port), "-f", tmp_path / "known_hosts"],
        capture_output=True,
        check=True,
    )

    known(line(key(), names)).check(ADDRESS, port, key())


@pytest.mark.parametrize(
    "names", ["10.0.3", "10.0.3.1", "10.0.3.1[78]", "10x0.3.17", "*,!10.0.3.*", f"!{ADDRESS}"]
)
def test_a_pattern_stands_for_no_other_host(names: str) -> None:
    with pytest.raises(UnknownHostKey):
        known(line(key(), names)).check(ADDRESS, 22, key())


@pytest.mark.parametrize("names", ["gpu1.lan", "GPU1.Lan", "*.LAN", HostKeys.hash_host("gpu1.lan")])
def test_capital_letters_and_blanks_around_an_address_make_no_difference(names: str) -> None:
    known(line(key(), names)).check(" Gpu1.LAN ", 22, key())


@pytest.mark.parametrize("names", [ADDRESS, "10.0.*", HostKeys.hash_host(ADDRESS)])
def test_a_revoked_key_is_refused_even_where_it_is_recorded_too(names: str) -> None:
    records = known(line(key()), f"@revoked {line(key(), names)}", line(key(1)))

    with pytest.raises(ChangedHostKey, match="revoked") as refused:
        records.check(ADDRESS, 22, key())
    assert fingerprint(key()) in refused.value.what
    records.check(ADDRESS, 22, key(1))
    assert records.keys(ADDRESS, 22) == [key(1)]


def test_a_key_that_is_revoked_for_another_host_is_not_for_this_one() -> None:
    known(line(key()), f"@revoked {line(key(), 'other')}").check(ADDRESS, 22, key())


@pytest.mark.parametrize(
    ("old", "left"),
    [
        ("{here} {key}", ""),
        ("{hashed} {key}", ""),
        ("gpu1,{here},gpu1.lan {key} root@gpu1", "gpu1,gpu1.lan {key} root@gpu1"),
        ("10.0.3.* {key}", "10.0.3.*,!{here} {key}"),
        ("10.0.3.*,!{here} {key}", "10.0.3.*,!{here} {key}"),
        ("other {key}", "other {key}"),
        ("# gpu1 since March", "# gpu1 since March"),
        ("@revoked {here} {key}", "@revoked {here} {key}"),
        ("nonsense", ""),
        ("{here} {key}\n{here} {rsa}", ""),
    ],
)
def test_a_key_that_is_recorded_anew_is_the_hosts_only_one(old: str, left: str) -> None:
    fields = {
        "here": ADDRESS,
        "hashed": HostKeys.hash_host(ADDRESS),
        "key": f"{key().get_name()} {key().get_base64()}",
        "rsa": f"{rsa().get_name()} {rsa().get_base64()}",
    }

    text = recorded_anew(old.format(**fields), ADDRESS, 22, key(1))

    assert text.splitlines() == [*left.format(**fields).splitlines(), line(key(1))]
    assert known(text).keys(ADDRESS, 22) == [key(1)]
    assert recorded_anew(text, ADDRESS, 22, key(1)) == text


def test_other_hosts_of_a_pattern_keep_their_key() -> None:
    text = recorded_anew(line(key(), "10.0.3.*"), ADDRESS, 22, key(1))

    known(text).check("10.0.3.18", 22, key())
