# SPDX-License-Identifier: Apache-2.0
"""`python -m tests.controlplane.flood URL CA PATH RATE SECONDS < TOKEN`: posts progress as a pod gone wrong would.

It runs beside the test, as a pod does: threads of the test itself would hold up the reads that the test takes the time
of. Prints how often each status came, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import sys
from collections import Counter
from urllib.parse import urlsplit

CONNECTIONS = 8
BODY = b'{"trainerStatus": {"progressPercentage": 5}}'
_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


async def flood(url: str, *, ca: str, path: str, token: str, rate: float, seconds: float) -> Counter[int]:
    """How often each status came, of `rate` posts a second over a few connections that stay open."""
    address, context = urlsplit(url), ssl.create_default_context(cafile=ca)
    head = f"POST {path} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {token}\r\n"
    request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY
    codes: Counter[int] = Counter()
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    async def post() -> None:
        reader, writer = await asyncio.open_connection(address.hostname, address.port, ssl=context)
        due = loop.time()
        while loop.time() < end:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            codes[int(answer.split(b" ", 2)[1])] += 1
            length = _LENGTH.search(answer)
            assert length is not None, answer
            await reader.readexactly(int(length[1]))
            due += CONNECTIONS / rate
            await asyncio.sleep(max(0.0, due - loop.time()))
        writer.close()

    await asyncio.gather(*(post() for _ in range(CONNECTIONS)))
    return codes


if __name__ == "__main__":
    found = asyncio.run(
        flood(
            sys.argv[1],
            ca=sys.argv[2],
            path=sys.argv[3],
            rate=float(sys.argv[4]),
            seconds=float(sys.argv[5]),
            token=sys.stdin.read().strip(),
        )
    )
    print(json.dumps(found))
