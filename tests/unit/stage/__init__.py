# SPDX-License-Identifier: Apache-2.0
"""Tests of the stage contract, check and prepare."""
