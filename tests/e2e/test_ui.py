"""What an operator sees in the browser, offline."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import BlockDocument
from pydantic import SecretStr

from deployments.browser import browser
from deployments.register import block_types
from deployments.server import PrivateServer

SECRETS = ("private_key", "passphrase", "password", "sudo_password")
SECRET = "correct horse battery staple"

LOGIN = (
    "Address",
    "Port",
    "User",
    "Host keys",
    "Private key",
    "Private key file",
    "Passphrase",
    "Password",
    "Connect timeout (seconds)",
)
FOLDERS = ("Work folder", "Models folder", "Patience (seconds)")
FORMS = {
    "ssh-host": (*LOGIN, "Jump host", "sudo", "sudo password", *FOLDERS),
    "ssh-jump-host": LOGIN,
    "local-host": FOLDERS,
    "model-hub": (
        "Endpoints",
        "Token",
        "Use the proxy",
        "CA bundle",
        "Connections per file",
        "Files at once",
        "Rate limit (Mbit/s)",
    ),
}


@pytest.fixture
def page(server: PrivateServer, chromium: Path) -> Iterator[Page]:
    """A page that may load from the server only, as at a site without Internet."""
    with browser(height=2400) as context:
        context.route(
            lambda url: not url.startswith((server.ui_url, "data:", "blob:")),
            lambda route: route.abort(),
        )
        yield context.new_page()


def open_block_form(page: Page, server: PrivateServer, slug: str) -> None:
    page.goto(f"{server.ui_url}/blocks/catalog/{slug}/create")
    page.get_by_role("button", name="Create").wait_for()


@pytest.mark.parametrize("block", block_types(), ids=lambda block: block.__name__)
def test_the_form_of_a_block_shows_its_titles_in_the_order_they_are_filled_in(
    page: Page, server: PrivateServer, block: Any
):
    slug = block.get_block_type_slug()
    assert {field.title for field in block.model_fields.values()} == set(FORMS[slug])
    open_block_form(page, server, slug)
    lines = [line.removesuffix(" (Optional)") for line in page.inner_text("form").splitlines()]
    assert [line for line in lines if line in FORMS[slug]] == list(FORMS[slug])


def test_only_the_jump_host_of_an_ssh_host_has_a_tab_for_nothing(page: Page, server: PrivateServer):
    open_block_form(page, server, "ssh-host")
    assert page.locator("form").get_by_role("button", name="null", exact=True).count() == 1


def test_what_is_typed_into_a_secret_field_is_hidden_in_the_new_ui(
    page: Page, server: PrivateServer
):
    # The present UI has no such field at all; it shows secrets until they are saved.
    page.goto(f"{server.ui_url}/v2/blocks/catalog/ssh-host/create")
    page.get_by_label("Address").wait_for()
    hidden = page.locator("form input[type=password]")
    labels = [page.locator(f"label[for='{field.get_attribute('id')}']") for field in hidden.all()]
    shown = [label.inner_text().removesuffix(" (Optional)") for label in labels]
    assert shown == ["Private key", "Passphrase", "Password", "sudo password"]


@pytest.mark.parametrize("block", block_types(), ids=lambda block: block.__name__)
def test_the_logo_of_a_block_loads_without_internet(page: Page, server: PrivateServer, block: Any):
    open_block_form(page, server, block.get_block_type_slug())
    page.wait_for_load_state("networkidle")
    widths = page.evaluate("[...document.images].map(image => image.naturalWidth)")
    assert widths
    assert 0 not in widths


@pytest.fixture
def block_with_secrets(client: SyncPrefectClient) -> BlockDocument:
    """A saved block. Before any page: Playwright's event loop turns `save` into a coroutine."""
    from blocks.ssh_host import SSHHost

    secrets = dict.fromkeys(SECRETS, SecretStr(SECRET))
    SSHHost(address="192.0.2.7", username="operator", **secrets).save("masked", overwrite=True)
    return client.read_block_document_by_name("masked", "ssh-host", include_secrets=False)


def test_secrets_are_masked_in_the_page_of_a_saved_block(
    block_with_secrets: BlockDocument, server: PrivateServer, page: Page
):
    page.goto(f"{server.ui_url}/blocks/block/{block_with_secrets.id}")
    page.get_by_text("192.0.2.7").first.wait_for()
    assert SECRET not in page.content()
    for name in SECRETS:
        assert set((block_with_secrets.data or {})[name]) == {"*"}


def test_the_run_form_of_a_deployment_shows_every_parameter_with_its_help(
    page: Page, server: PrivateServer, client: SyncPrefectClient
):
    deployment = client.read_deployment_by_name("ship-images/manual")
    page.goto(f"{server.ui_url}/deployments/deployment/{deployment.id}/run")
    page.get_by_text("Parameters").first.wait_for()
    text = page.inner_text("form")
    schema = deployment.parameter_openapi_schema
    assert schema
    for name, field in schema["properties"].items():
        assert field["title"] in text, name
        assert field["description"].split("\n")[0] in text, name
