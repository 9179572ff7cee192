# SPDX-License-Identifier: Apache-2.0
"""What changes the weights: AdamW and its average, the learning rate's schedule, low-rank additions."""
