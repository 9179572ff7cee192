# SPDX-License-Identifier: Apache-2.0
"""The commands: what each takes, and nothing that is slow to import before one is called."""
