# SPDX-License-Identifier: Apache-2.0
"""What a training will take, and whether it can work, before anything is allocated."""
