# SPDX-License-Identifier: Apache-2.0
"""The stages that need no accelerator."""
