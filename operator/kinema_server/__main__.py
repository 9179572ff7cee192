# SPDX-License-Identifier: Apache-2.0
"""`kinema-server --config FILE`."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

from kinema_kube import logs
from kinema_server.certificate import CertificateError
from kinema_server.serve import serve
from kinema_server.settings import SettingsError, load_settings


def main() -> None:
    """Run the server; exits 1 when it cannot start."""
    parser = argparse.ArgumentParser(prog="kinema-server", description="Takes progress and answers reads, over HTTPS.")
    parser.add_argument("--config", type=Path, help="YAML file of settings; the defaults without one")
    arguments = parser.parse_args()
    try:
        settings = load_settings(arguments.config)
        logs.configure(level=settings.log_level)
        started = asyncio.run(serve(settings))
    except (SettingsError, CertificateError) as error:
        sys.exit(f"kinema-server: {error}")
    sys.exit(0 if started else 1)


if __name__ == "__main__":
    main()
