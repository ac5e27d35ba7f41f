"""Puts the pictures of block types where the Prefect server's UI can load them offline."""

from __future__ import annotations

import shutil
from pathlib import Path

from blocks.logo import PICTURES, SERVED_AT


def publish_logos() -> bool:
    """Copy the pictures beside the UI's own files, on the machine of the server.

    Prefect copies its UI there at the server's first start and again after an
    upgrade of Prefect, so register again after an upgrade.

    Returns:
        False where this machine has no such folder, i.e. the server runs elsewhere.
    """
    folder = _ui_folder()
    if not folder.is_dir():
        return False
    shutil.copytree(PICTURES, folder / SERVED_AT, dirs_exist_ok=True)
    return True


def _ui_folder() -> Path:
    """Return the folder that the server publishes as `/` (prefect.server.api.server)."""
    import prefect
    from prefect.settings import get_current_settings

    configured = get_current_settings().server.ui.static_directory
    return Path(configured) / "v1" if configured else Path(prefect.__ui_static_subpath__)
