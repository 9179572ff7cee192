# SPDX-License-Identifier: Apache-2.0
"""What a sample is made of and judged by: the flow, its masks and conditions, and the loss."""
