# SPDX-License-Identifier: Apache-2.0
"""Layouts: which process holds what, what processes exchange, and attention over shared tokens."""
