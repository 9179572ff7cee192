# SPDX-License-Identifier: Apache-2.0
"""`kinema-operator --config FILE`."""

from __future__ import annotations

import argparse
import asyncio
import gc
import sys
from pathlib import Path

from kinema_kube import logs
from kinema_kube.connect import NoClusterError
from kinema_operator.run import run
from kinema_operator.settings import DEFAULT_PATH, SettingsError, load


def main() -> None:
    """Run the operator; exits 1 when it has to be started anew."""
    parser = argparse.ArgumentParser(prog="kinema-operator", description="Turns VideoTrainingJobs into pipelines.")
    parser.add_argument("--config", type=Path, default=DEFAULT_PATH, help=f"YAML file of settings ({DEFAULT_PATH})")
    arguments = parser.parse_args()
    try:
        settings = load(arguments.config)
        logs.configure(level=settings.log_level)
        # What is imported by now stays: the collector need not walk through it again and again.
        gc.collect()
        gc.freeze()
        well = asyncio.run(run(settings))
    except (SettingsError, NoClusterError) as error:
        sys.exit(f"kinema-operator: {error}")
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
