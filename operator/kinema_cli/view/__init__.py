# SPDX-License-Identifier: Apache-2.0
"""What people read: from objects of the API server to lines of text. Pure."""
