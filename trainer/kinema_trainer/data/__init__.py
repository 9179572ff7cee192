# SPDX-License-Identifier: Apache-2.0
"""From encoded clips to batches: shards, costs, packs, the counted course of a run, and its reader."""
