# SPDX-License-Identifier: Apache-2.0
"""Checkpoints and weights: their folders, how tensors are written and read, and where."""
