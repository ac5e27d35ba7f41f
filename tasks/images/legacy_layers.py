"""Which layer a folder of an archive of engines before 25 holds, told before it is read.

Such an engine names the folder by a hash over the layer's chain id and the settings
that lie beside it in the file `json`. Whoever knows which chain ids are possible
finds the one, and need not read a layer that is not wanted.

Source: https://github.com/moby/moby/blob/v20.10.24/image/v1/imagev1.go, CreateID.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

_PLACEHOLDER = "\0"
# How Go's encoder writes what could break out of a script in a web page.
_ESCAPED = str.maketrans({char: f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"})


def layer_beside(document: bytes, chains: Mapping[str, str]) -> str:
    """Return the diff id of the layer that lies beside a file `json`.

    Args:
        document: That file.
        chains: Chain ids of the layers that are possible, and their diff ids.

    Returns:
        The diff id; empty where none of them is proven to be it.
    """
    try:
        settings = dict(json.loads(document))
        name = bytes.fromhex(settings.pop("id"))
        if parent := settings.pop("parent", ""):
            settings["parent"] = f"sha256:{parent}"
    except (ValueError, TypeError, KeyError):
        return ""
    # The system is part of the hash for the uppermost layer of an image only.
    for preimage in (settings, {k: v for k, v in settings.items() if k != "os"}):
        before, after = _around_chain(preimage)
        for chain, diff_id in chains.items():
            if hashlib.sha256(before + chain.encode() + after).digest() == name:
                return diff_id
    return ""


def _around_chain(settings: Mapping[str, object]) -> tuple[bytes, bytes]:
    """Return what is hashed before and behind the chain id: sorted on the uppermost level."""
    ordered = sorted((settings | {"layer_id": _PLACEHOLDER}).items())  # type: ignore[operator]
    text = json.dumps(dict(ordered), separators=(",", ":"), ensure_ascii=False)
    before, _, after = text.translate(_ESCAPED).partition(json.dumps(_PLACEHOLDER))
    return f'{before}"'.encode(), f'"{after}'.encode()
