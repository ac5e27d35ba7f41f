"""Servers and workers get the settings of their own server, and of no other."""

from pathlib import Path

import pytest

from deployments.settings import (
    client_environment,
    offline_settings,
    server_environment,
    stored_auth_string,
)

HOME = Path("/somewhere/.state/demo")


def environment(inherited: dict[str, str], **changes: str) -> dict[str, str]:
    values = {"api_url": "http://198.51.100.5:4280/api", "auth_string": "", **changes}
    return client_environment(inherited, home=HOME, **values)


def test_the_operators_own_prefect_settings_are_left_out():
    found = environment(
        {"PREFECT_API_KEY": "pnu_x", "PREFECT_PROFILE": "cloud", "PATH": "/usr/bin"}
    )
    assert "PREFECT_API_KEY" not in found
    assert "PREFECT_PROFILE" not in found
    assert found["PATH"] == "/usr/bin"
    assert found["PREFECT_API_URL"] == "http://198.51.100.5:4280/api"
    assert found["PREFECT_HOME"] == str(HOME)


@pytest.mark.parametrize("name", ["NO_PROXY", "no_proxy"])
def test_calls_to_the_api_never_take_a_proxy(name: str):
    found = environment({name: "intranet.example", "HTTP_PROXY": "http://192.0.2.1:3128"})
    assert found[name].split(",") == ["intranet.example", "127.0.0.1", "localhost", "198.51.100.5"]
    assert found["HTTP_PROXY"] == "http://192.0.2.1:3128"


def test_the_settings_file_keeps_prefect_from_calling_out():
    settings = offline_settings()
    assert settings["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert settings["DO_NOT_TRACK"] == "1"
    assert settings["PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT"] == "false"
    assert settings.items() <= environment({}).items()


def test_without_authentication_no_auth_string_is_set():
    client = environment({})
    server = server_environment(
        client, listen="127.0.0.1", port=4280, api_url="http://127.0.0.1:4280/api", auth_string=""
    )
    assert not [name for name in server if "AUTH" in name]


def test_with_authentication_server_and_clients_share_it():
    client = environment({}, auth_string="admin:secret")
    server = server_environment(
        client, listen="0.0.0.0", port=1, api_url="http://a:1/api", auth_string="admin:secret"
    )
    assert client["PREFECT_API_AUTH_STRING"] == "admin:secret"
    assert server["PREFECT_SERVER_API_AUTH_STRING"] == "admin:secret"


def test_the_auth_string_is_made_once_and_readable_by_its_owner_only(tmp_path: Path):
    first = stored_auth_string(tmp_path / "demo")
    assert first.startswith("admin:")
    assert len(first) > 25
    assert stored_auth_string(tmp_path / "demo") == first
    assert (tmp_path / "demo" / "auth").stat().st_mode & 0o777 == 0o600
    assert stored_auth_string(tmp_path / "other") != first
