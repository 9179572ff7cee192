#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The demo: from nothing to a trained model and a sampled clip; `make demo` runs it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from kinema_demo.main import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
