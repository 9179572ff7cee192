# SPDX-License-Identifier: Apache-2.0
"""What the operator's process does without."""

from __future__ import annotations

import json
import subprocess
import sys

PROBE = """
import json, sys
import kinema_operator.__main__
from kinema_operator import memory
memory.give_back()
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""


def test_the_process_loads_neither_the_synchronous_client_nor_what_only_that_needs() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True, timeout=120)
    loaded = set(json.loads(done.stdout))
    assert {"kopf", "kubernetes", "aiohttp"} <= loaded
    assert not loaded & {"requests", "urllib3", "oauthlib", "websocket", "fastapi", "typer", "rich", "httpx"}
