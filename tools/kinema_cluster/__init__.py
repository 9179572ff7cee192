# SPDX-License-Identifier: Apache-2.0
"""A local Kubernetes from Debian packages and programs built from pinned source; standard library only."""
