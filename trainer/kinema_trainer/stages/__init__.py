# SPDX-License-Identifier: Apache-2.0
"""The stages that need torch, one module each; entry points of the group `kinema.stages`."""
